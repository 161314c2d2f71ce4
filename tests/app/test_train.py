"""The commands recipes, train and runs: what they take, print and refuse. What a run does: tests/app/runs."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from spequant.app.cli import main
from spequant.app.recipes import RECIPES
from spequant.app.recipes.serial import from_json
from spequant.app.runs import load_run
from spequant.app.studies.arms import command_of
from spequant.app.train import parsed_train, run_name


def test_recipes_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["recipes"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)
    main(["recipes", "cifar10-5k-resnet20-w2a2-beyond"])
    assert from_json(capsys.readouterr().out) == RECIPES["cifar10-5k-resnet20-w2a2-beyond"]()


def test_what_a_run_writes(digits_run):
    """As `train` left it."""
    result = json.loads((digits_run / "result.json").read_text())
    rows = [json.loads(line) for line in (digits_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["start", "calibrated", "epoch", "epoch", "biases", "result"]
    assert rows[0]["command"] and rows[2]["images_per_second"] > 0
    floating = json.loads((digits_run.parent / "digits-float" / "result.json").read_text())
    assert result["weight_bytes"] < floating["weight_bytes"] / 12


def test_train_then_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--data.images", "128", "--data.held-out", "50", "--train.epochs", "2", "--train.measure-every", "2"]
    main(["train", "digits-float", *short])
    assert "-> runs/digits-float\n" in capsys.readouterr().out
    metrics = (tmp_path / "runs/digits-float/metrics.jsonl").read_text().splitlines()
    assert ["held_out_accuracy" in row for row in map(json.loads, metrics) if row["kind"] == "epoch"] == [False, True]
    with pytest.raises(SystemExit, match=r"runs/digits-float .*--out"):
        main(["train", "digits-float"])


def test_a_command_sets_what_it_names():
    args = ["--method.temperature", "2", "--train.no-compile", "--network.weights", "None", "--quant.overrides", "a=3"]
    found = parsed_train("digits-w2a2-speq", [*args, "--out", "a b", "--resume"])
    recipe = found.recipe
    assert (recipe.method.temperature, recipe.network.weights, recipe.quant.overrides) == (2.0, None, ("a=3",))
    assert (found.out, found.resume, found.dry_run) == (Path("a b"), True, False)
    assert [run_name(recipe.with_seed(seed)) for seed in (0, 3)] == ["digits-w2a2-speq", "digits-w2a2-speq-seed3"]


def test_low_bits_from_random_weights_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ["--network.weights", "None", "--data.images", "320", "--quant.percentile", "99.9", "--dry-run"]
    main(["train", "digits-w2a2-retrain", *few])
    said = capsys.readouterr()
    assert "network.weights is not set" in said.err and re.search(r"median of 2; before it 3 in", said.out)
    assert list(tmp_path.iterdir()) == []


def test_every_field_can_be_overridden(capsys):
    main(["train", "digits-float", "--help"])
    printed = capsys.readouterr().out
    recipe = RECIPES["digits-float"]()
    for part in ("data", "network", "quant", "method", "train"):
        for field in dataclasses.fields(getattr(recipe, part)):
            assert f"--{part}.{field.name.replace('_', '-')}" in printed


def test_resuming_what_is_finished_says_its_result(digits_run, capsys):
    arguments = [*shlex.split(command_of("digits-w2a2-speq", load_run(digits_run)[0], digits_run))[1:], "--resume"]
    before = (digits_run / "result.json").stat().st_mtime_ns
    main(arguments)
    accuracy = json.loads((digits_run / "result.json").read_text())["test_accuracy"]
    assert f"test accuracy {accuracy:.2f} %" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"digits-w2a2-speq .*train\.lr is 0\.04, expected 0\.5"):
        main([*arguments, "--train.lr", "0.5"])
    assert (digits_run / "result.json").stat().st_mtime_ns == before


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.th")
    weights = ["--network.weights", str(tmp_path / "tensor.th")]
    with pytest.raises(SystemExit, match=r"tensor\.th .*Tensor; expected tensors by name"):
        main(["train", "digits-w2a2-retrain", *weights, "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()
