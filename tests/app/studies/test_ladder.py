"""The command `ladder`: what each step down in bits costs, and its worst layer."""

import json
from pathlib import Path

import pytest

from spequant.app.cli import main
from spequant.app.studies import ladder
from support.made_up_runs import Run

SETTINGS = "--data digits --data.held-out 200 --data.no-augment --network.name resnet8 --train.no-compile"


def climbed(float_run: Path, out: Path, printed, *more: str) -> dict:
    arguments = [*SETTINGS.split(), *more]
    arguments += ["--network.weights", str(float_run), "--out", str(out)]
    main(["ladder", *arguments])
    found = json.loads((out / "ladder.json").read_text())
    rungs = {r["rung"]: r for r in found["rungs"]}
    told = printed.readouterr().out
    assert all(r["worst_layer"] in told for r in rungs.values())
    # Eight bits cost next to nothing, two bits much, and a layer alone less than all of them together.
    assert abs(rungs["W8A8"]["calibrated_test"] - found["float"]["test"]) < 1
    assert rungs["W2A2"]["calibrated_test"] < rungs["W8A8"]["calibrated_test"] - 2
    assert rungs["W2A2"]["worst_layer_loss"] > rungs["W8A8"]["worst_layer_loss"]
    with pytest.raises(SystemExit, match=f"{out} exists.* --out"):
        main(["ladder", *arguments])
    return rungs


def test_ladder_names_the_worst_layer_of_each_rung(digits_run, tmp_path, monkeypatch, capsys):
    """Of the first and the last, whose training is made up."""
    run = Run(lambda recipe: 90.0 + recipe.quant.weight_bits)
    monkeypatch.setattr(ladder, "RUNGS", (ladder.RUNGS[0], ladder.RUNGS[-1]))
    monkeypatch.setattr(ladder, "run", run)
    at_once = ("--quant.percentile", "99.9")
    rungs = climbed(digits_run.parent / "digits-float", tmp_path / "ladder", capsys, *at_once)
    assert run.trained == [tmp_path / "ladder" / name for name in rungs]
    assert [r["trained"] for r in rungs.values()] == [r["trained_test"] for r in rungs.values()] == [98.0, 92.0]


@pytest.mark.slow
def test_the_ladder_whole(digits_run, tmp_path, capsys):
    rungs = climbed(digits_run.parent / "digits-float", tmp_path / "ladder", capsys)
    assert list(rungs) == ["W8A8", "W4A4", "W2A8", "W8A2", "W2A2"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ([], r"network\.weights is not set"),
        (["--network.weights", "a", "--data.held-out", "0"], r"data\.held_out is 0"),
    ],
)
def test_what_the_ladder_cannot_start_from_is_named(settings, named, digits_run, tmp_path):
    own = [str(digits_run.parent / "digits-float") if word == "a" else word for word in settings]
    with pytest.raises(SystemExit, match=named):
        main(["ladder", *SETTINGS.split(), *own, "--out", str(tmp_path / "ladder")])
    assert not (tmp_path / "ladder").exists()
