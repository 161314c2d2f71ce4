"""The command line: what each command takes, prints and refuses. What they do: tests/recipes, studies, bench."""

import dataclasses
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from spequant.app.cli import COMMANDS, main, parsed_train, run_name
from spequant.app.recipes import RECIPES
from spequant.app.recipes.serial import from_json
from spequant.app.runs import evaluate_source, load_run
from spequant.app.studies.arms import command_of

README = Path(__file__).resolve().parents[2] / "README.md"


def test_recipes_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["recipes"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)
    main(["recipes", "cifar10-5k-resnet20-w2a2-beyond"])
    assert from_json(capsys.readouterr().out) == RECIPES["cifar10-5k-resnet20-w2a2-beyond"]()


def test_other_packages_show_no_bars(monkeypatch, capsys):
    """That would fill a log."""
    names = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    main(["recipes", "--help"])
    assert [os.environ.get(name) for name in names] == ["1"] * 3


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


def test_a_run_is_evaluated_compared_and_listed(digits_run, capsys):
    result = json.loads((digits_run / "result.json").read_text())
    main(["evaluate", str(digits_run)])
    assert f"accuracy {result['test_accuracy']:.2f} %" in capsys.readouterr().out
    assert evaluate_source(digits_run)[0]["accuracy"] == result["test_accuracy"] > 60
    main(["compare", str(digits_run.parent / "digits-float"), str(digits_run)])
    assert "digits-w2a2-speq" in capsys.readouterr().out
    main(["runs", str(digits_run.parent)])
    assert re.search(r"digits-w2a2-speq\s.*finished\s.* 2/2\s.*\d\d\.\d\d", capsys.readouterr().out)


def test_a_command_sets_what_it_names():
    args = ["--method.temperature", "2", "--train.no-compile", "--network.weights", "None", "--quant.overrides", "a=3"]
    found = parsed_train("digits-w2a2-speq", [*args, "--out", "a b", "--resume"])
    recipe = found.recipe
    assert (recipe.method.temperature, recipe.network.weights, recipe.quant.overrides) == (2.0, None, ("a=3",))
    assert (found.out, found.resume, found.dry_run) == (Path("a b"), True, False)
    assert [run_name(recipe.with_seed(seed)) for seed in (0, 3)] == ["digits-w2a2-speq", "digits-w2a2-speq-seed3"]


@pytest.mark.parametrize("command", ["train", "runs", "recipes", "study", "bench"])
def test_help_is_no_argument(command, capsys):
    main([command, "--help"])
    assert f"usage: spequant {command}" in capsys.readouterr().out


def test_every_command_is_in_the_usage(capsys):
    main([])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)


def test_the_package_is_the_command(monkeypatch, capsys):
    """`python -m spequant`."""
    monkeypatch.setattr(sys, "argv", ["spequant", "runs", "--help"])
    runpy.run_module("spequant", run_name="__main__")
    assert "usage: spequant runs" in capsys.readouterr().out


def test_low_bits_from_random_weights_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ["--network.weights", "None", "--data.images", "320", "--quant.percentile", "99.9", "--dry-run"]
    main(["train", "digits-w2a2-retrain", *few])
    said = capsys.readouterr()
    assert "network.weights is not set" in said.err and re.search(r"median of 2; before it 3 in", said.out)
    assert list(tmp_path.iterdir()) == []


def test_misspelt_words_get_a_hint(capsys):
    for words in ([], ["--out", "a", "digits-float"]):
        with pytest.raises(SystemExit, match=r"no recipe .*train digits-float"):
            main(["train", *words])
    with pytest.raises(SystemExit, match="did you mean digits-w2a2-speq"):
        main(["train", "digits-w2a2-spek"])
    with pytest.raises(SystemExit, match="did you mean train"):
        main(["trian"])
    with pytest.raises(SystemExit):
        main(["train", "digits-float", "--train.epoch", "3"])
    assert "--train.epochs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "digits-float", "--train.measure-every", "0"])
    assert "measure_every is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "cifar10-resnet20-w2a2-speq"], r"data\.root is not set"),
        (["train", "digits-float", "--data.held-out", "9999"], "held_out is 9999"),
        (["evaluate", "."], r"recipe\.json does not exist"),
        (["runs", "nowhere"], "nowhere does not exist"),
        (["runs", "a", "b"], "one folder at most"),
        (["recipes", "a", "b"], "recipes .* a b"),
        (["recipes", "digits-flaot"], "recipe is 'digits-flaot'; did you mean digits-float"),
        (["study"], "no study .*table1, fig2"),
        (["study", "--smoke"], "no study .*table1, fig2"),
        (["bench", "trian"], "bench .*'trian'; expected train or infer"),
    ],
)
def test_wrong_values_get_an_error(words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPEQUANT_DATA", raising=False)
    with pytest.raises(SystemExit, match=f"^spequant {words[0]}: .*{named}"):
        main(words)
    assert not (tmp_path / "runs").exists()


def test_readme_python_runs():
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.S)
    assert code
    names: dict = {}
    exec(code.group(1), names)
    losses = names["losses"]
    assert losses.total.isfinite() and losses.distill > 0 and losses.task > 0


def test_every_field_can_be_overridden(capsys):
    with pytest.raises(SystemExit):
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


@pytest.mark.parametrize(
    ("file", "before", "after", "named"),
    [
        ("model.safetensors", None, b"short", r"damaged/model\.safetensors is "),
        ("recipe.json", None, b"[]", r"recipe\.json: recipe is \[\]; expected an object"),
        ("recipe.json", None, b"{", r"recipe\.json: recipe is no JSON"),
        ("recipe.json", b'"resnet8"', b'"resnet9"', r"network\.name is 'resnet9'; expected resnet8"),
        (
            "recipe.json",
            b'"act": {\n      "name": "pact",\n      "decay": 0.0002',
            b'"act": {\n      "name": "lsq"',
            "another kind",
        ),
    ],
)
def test_a_damaged_run_is_refused(digits_run, tmp_path, file, before, after, named, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(digits_run, damaged)
    content = (damaged / file).read_bytes()
    (damaged / file).write_bytes(after if before is None else content.replace(before, after))
    with pytest.raises(SystemExit, match=named):
        main(["evaluate", str(damaged)])
    main(["runs", str(tmp_path)])  # one bad folder does not hide the others
    assert "damaged" in capsys.readouterr().out


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.th")
    weights = ["--network.weights", str(tmp_path / "tensor.th")]
    with pytest.raises(SystemExit, match=r"tensor\.th .*Tensor; expected tensors by name"):
        main(["train", "digits-w2a2-retrain", *weights, "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()
