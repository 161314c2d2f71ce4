"""What a run's folder says of its images: kept when it trains, read in place of the data."""

import json
import shutil

import pytest
import torch

from spequant.app.runs import export_source, open_source
from spequant.app.runs.facts import configuration_of, facts_of, read_facts
from spequant.data import Configuration, Digits, load_digits
from spequant.deploy import load

DIGITS = Configuration((0.305,), (0.376,), crop_pct=1.0, size=8)


def test_a_run_keeps_them(digits_run, tmp_path):
    facts = read_facts(digits_run)
    assert facts == facts_of(load_digits()[0])
    assert (facts["classes"], facts["shape"], facts["class_names"]) == (10, [1, 8, 8], list("0123456789"))
    assert configuration_of(facts) == DIGITS
    export_source(digits_run, "packed", tmp_path / "net.packed", images=32)
    packed = load(tmp_path / "net.packed")
    assert packed.classes == tuple("0123456789") and configuration_of(packed.about) == DIGITS


def test_a_run_is_opened_without_its_data(digits_run, monkeypatch):
    def absent(*_):
        pytest.fail("the data were read")

    with monkeypatch.context() as patch:
        patch.setattr(Digits, "load", absent)
        source = open_source(digits_run)
    assert source.shape == (1, 8, 8) and source.loaded.classes == tuple("0123456789")
    assert len(source.test_set()) == 500


def test_a_run_of_an_older_version_has_none(digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "run", ignore=shutil.ignore_patterns("data.json", "checkpoints"))
    assert read_facts(tmp_path / "run") is None
    old, new = open_source(tmp_path / "run"), open_source(digits_run)
    assert old.shape == new.shape and old.loaded.about == new.loaded.about
    assert all(map(torch.equal, old.model.state_dict().values(), new.model.state_dict().values()))


@pytest.mark.parametrize(
    "change", [{"shape": "big"}, {"classes": 2**40}, {"class_names": ["a"]}, {"images": {"mean": [1]}}, {"images": 3}]
)
def test_damaged_ones_are_named(change, digits_run, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps({**read_facts(digits_run), **change}))
    with pytest.raises(ValueError, match=r"data\.json is damaged"):
        read_facts(tmp_path)
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(ValueError, match=r"data\.json is damaged"):
        read_facts(tmp_path)
