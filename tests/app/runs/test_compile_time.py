"""The time that compiling took the last time: kept by what is compiled, and not known where it cannot be read."""

from dataclasses import replace

import pytest
import torch

from spequant.app.recipes import RECIPES
from spequant.app.runs.compile_time import last_seconds, remember

SPEQ, CPU = RECIPES["digits-w2a2-speq"](), torch.device("cpu")


def test_a_time_is_kept_for_what_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert last_seconds(SPEQ, CPU) is None
    remember(SPEQ, CPU, 34.56)
    remember(RECIPES["digits-w2a2-retrain"](), CPU, 20.0)
    longer = replace(SPEQ, name="other", train=replace(SPEQ.train, epochs=99))
    assert last_seconds(longer, CPU) == 34.6 and last_seconds(RECIPES["digits-w2a2-retrain"](), CPU) == 20.0
    wider = replace(SPEQ, quant=replace(SPEQ.quant, weight_bits=3))
    assert last_seconds(wider, CPU) is None and last_seconds(SPEQ, torch.device("meta")) is None


@pytest.mark.parametrize("content", ["{", "[1]", '{"x": "y"}'])
def test_a_file_of_something_else_is_as_none(content, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "spequant").mkdir()
    (tmp_path / "spequant" / "compile.json").write_text(content)
    assert last_seconds(SPEQ, CPU) is None
    remember(SPEQ, CPU, 3.0)
    assert last_seconds(SPEQ, CPU) == 3.0


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember(SPEQ, CPU, 3.0)
    assert last_seconds(SPEQ, CPU) is None
