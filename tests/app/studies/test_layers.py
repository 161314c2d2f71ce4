"""`spequant layers`: the rows that a run writes of its layers, the table and the picture made of them."""

import json
import re
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spequant.app.cli import main
from spequant.app.recipes import RECIPES
from spequant.app.runs import Quiet, run
from spequant.app.studies.layers import agreement_line, looks_of, marked, remarks
from spequant.train import Diagnostics, Looks, TrainingState
from spequant.train.checkpoint import checkpoints, read

SHORT = {"epochs": 3, "batch_size": 256, "device": "cpu", "compile": False, "threads": 1}


def recipe(**train):
    made = RECIPES["digits-w2a2-speq"]()
    made = replace(made, network=replace(made.network, weights=None), data=replace(made.data, held_out=97))
    return replace(made, train=replace(made.train, **{**SHORT, "layers_every": 1, **train}))


def rows(folder, kind="layers"):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(recipe(), folder)
    return folder


def test_rows_are_short_and_names_are_written_once(finished):
    first, *others = rows(finished)
    assert [row["epoch"] for row in (first, *others)] == [0, 1, 2, 3]
    assert first["names"][:4] == ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.add.branch"]
    assert first["names"][-1] == "linear" and (first["weight_bits"][0], first["act_bits"][1]) == (8, 2)
    assert not {"names", "weight_bits", "act_bits", "of"} & {name for row in others for name in row}
    assert "changed" not in first and others[0]["changed"][0] is not None and others[0]["changed"][3] is None
    count = len(first["names"])
    for row in (first, *others):
        values = [value for column in row.values() if isinstance(column, list) for value in column]
        assert all(len(column) == count for column in row.values() if isinstance(column, list))
        numbers = [x for x in (*values, row["agreement"]) if isinstance(x, float)]
        assert numbers and all(float(f"{x:.4g}") == x for x in numbers)


class Dies(Quiet):
    """A reporter that ends the run after the epoch of that number, or at that step of the next one."""

    def __init__(self, epoch, step):
        self.at, self.done = (epoch, step), 0

    def epoch(self, row):
        self.done = row["epoch"]

    def step(self, progress):
        if (self.done, progress.step) == self.at:
            raise OSError("died")


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_writes_the_rows_of_one_left_alone(every, finished, tmp_path):
    made = recipe(layers_every=every, checkpoint_every=2)
    alone = finished
    if every > 1:
        run(made, tmp_path / "alone")
        alone = tmp_path / "alone"
    with pytest.raises(OSError, match="died"):
        run(made, tmp_path / "run", Dies(2, 3))
    run(made, tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(alone)
    assert [row["epoch"] for row in rows(alone)] == ([0, 1, 2, 3] if every == 1 else [0, 2, 3])
    a, b = (load_file(folder / "model.safetensors") for folder in (alone, tmp_path / "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def codes(folder):
    snapshot, facts = read(checkpoints(folder / "checkpoints")[-1])
    return snapshot.part("codes"), facts["layers_named"]


@pytest.mark.slow
def test_without_the_field_nothing_is_looked_at_or_kept(finished, tmp_path, monkeypatch):
    assert "conv1" in codes(finished)[0] and codes(finished)[1]

    def look(*_, **__):
        raise AssertionError("looked at the layers")

    with monkeypatch.context() as patch:
        patch.setattr(Diagnostics, "__call__", look)
        with pytest.raises(OSError, match="died"):
            run(recipe(layers_every=None), tmp_path / "run", Dies(1, 2))
    assert codes(tmp_path / "run") == ({}, False) and rows(tmp_path / "run") == []
    run(recipe(), tmp_path / "run", resume=True)  # looked at from here on
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [2, 3] and looks_of(tmp_path / "run").epochs == [2, 3]
    a, b = (load_file(folder / "model.safetensors") for folder in (finished, tmp_path / "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)  # a look changes nothing


@pytest.mark.slow
def test_a_run_that_goes_wrong_copies_nothing(monkeypatch, tmp_path):
    seen = []
    capture = TrainingState.capture
    monkeypatch.setattr(TrainingState, "capture", lambda state: seen.append(state.step) or capture(state))
    with pytest.raises(FloatingPointError, match="first to go"):
        run(recipe(lr=1e30), tmp_path / "run")
    assert not seen and [row["epoch"] for row in rows(tmp_path / "run")] == [0]


def test_the_command_prints_a_table_and_draws(finished, capsys, tmp_path):
    main(["layers", str(finished)])
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "layer1.0.conv1" in line)
    last = rows(finished)[-1]
    i = rows(finished)[0]["names"].index("layer1.0.conv1")
    assert f"{100 * last['clipped'][i]:.2f}" in line and "4 of 4" in line and f"{100 * last['changed'][i]:.2f}" in line
    assert "layers after epoch 3" in said and "since epoch 2" in said and "epoch: 0: " in said
    conv1 = next(line for line in said.splitlines() if re.search(r"\bconv1\b", line) and "layer" not in line)
    assert "17 of 255" in conv1 and "half the levels unused" in conv1  # digits have 17 grey levels
    picture = matplotlib.image.imread(finished / "layers.png")
    assert picture.shape[0] > 300 and picture.std() > 0.05
    main(["layers", str(finished), "--out", str(tmp_path / "p.png")])
    assert (tmp_path / "p.png").read_bytes() == (finished / "layers.png").read_bytes()


def test_a_run_without_such_rows_is_named_with_what_to_do(finished, tmp_path):
    with pytest.raises(SystemExit, match=r"absent/recipe\.json does not exist"):
        main(["layers", str(tmp_path / "absent")])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text((finished / "recipe.json").read_text())
    old = {"kind": "layers", "epoch": 0, "layers": {"conv1": {"clipped": 0.1}}, "agreement": 0.5}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    with pytest.raises(SystemExit, match=rf"{tmp_path}/run did not look.*--train\.layers-every 1"):
        main(["layers", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=r"out is .*p\.pdf"):
        main(["layers", str(finished), "--out", str(tmp_path / "p.pdf")])


def test_a_field_without_effect_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"train\.layers_every is 1; expected"):
        main(["train", "digits-float", "--train.layers-every", "1", "--out", str(tmp_path / "run")])


def test_what_deserves_attention():
    nothing = np.full((4, 2), np.nan)
    values = {what: nothing.copy() for what in ("clipped", "levels", "low", "high", "clip", "changed")}
    values["clipped"][:, 1] = 0.06, 0.04, 0.0, np.nan
    values["levels"][:, 1] = 4, 1, 100, np.nan
    values["changed"][:, 1] = 0.02, 0.001, 0.5, 0.02
    looks = Looks(["a", "b", "c", "d"], [2, 2, 8, 4], [2, 2, 8, None], [4, 4, 255, None], [0, 5], values, [0.5, None])
    assert remarks(looks) == [
        ["much is clipped", "codes still change"],
        ["half the levels unused"],
        ["half the levels unused"],  # of 8 bits codes change all the time
        ["codes still change"],
    ]
    assert marked(looks)[1] == "codes still change (2 of 4 layers)"
    assert agreement_line(looks).endswith("by epoch: 0: 50.0")
    assert agreement_line(replace(looks, agreement=[None, None])) == ""
    many = replace(looks, epochs=list(range(200)), agreement=[0.5] * 199 + [1.0])
    points = agreement_line(many).partition("epoch: ")[2].split(", ")
    assert len(points) == 12 and points[-1] == "199: 100.0"
