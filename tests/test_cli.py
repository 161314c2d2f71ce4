"""The command line, recipes and run folders."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from spequant.cli import main
from spequant.layers import act_quantizers
from spequant.models import resnet8
from spequant.quantizers import PACT
from spequant.recipes import RECIPES, evaluate_source
from spequant.recipes.build import build_quantized
from spequant.recipes.schema import from_json, to_json

SHORT = ["--train.epochs", "1"]
README = Path(__file__).resolve().parents[1] / "README.md"


def test_recipes_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["recipes"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)
    main(["recipes", "cifar10-5k-resnet20-w2a2-beyond"])
    assert from_json(capsys.readouterr().out) == RECIPES["cifar10-5k-resnet20-w2a2-beyond"]()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name):
    recipe = RECIPES[name]()
    assert recipe.name == name and from_json(to_json(recipe)) == recipe


def test_a_recipe_of_another_version_is_refused():
    content = json.loads(to_json(RECIPES["digits-float"]()))
    content["train"]["epoch"] = 3
    with pytest.raises(ValueError, match=r"recipe\.train has the fields \['epoch'\]"):
        from_json(json.dumps(content))


def test_train_then_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["train", "digits-float", "--train.epochs", "2", "--data.held-out", "200", "--data.measure-every", "2"])
    metrics = (tmp_path / "runs/digits-float/metrics.jsonl").read_text().splitlines()
    assert ["held_out_accuracy" in row for row in map(json.loads, metrics) if row["kind"] == "epoch"] == [False, True]
    main(["train", "digits-w2a2-speq", *SHORT, "--method.temperature", "2", "--data.held-out", "200"])
    folder = tmp_path / "runs" / "digits-w2a2-speq"
    result = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["start", "calibrated", "layers", "epoch", "layers", "biases", "result"]
    assert rows[0]["command"] and rows[3]["images_per_second"] > 0 and rows[4]["layers"]["conv1"]["changed"] is not None
    assert from_json((folder / "recipe.json").read_text()).method.temperature == 2
    capsys.readouterr()
    main(["evaluate", "runs/digits-w2a2-speq"])
    assert f"accuracy {result['test_accuracy']:.2f} %" in capsys.readouterr().out
    assert evaluate_source(folder)[0]["accuracy"] == result["test_accuracy"] > 60
    floating = json.loads((tmp_path / "runs/digits-float/result.json").read_text())
    assert result["weight_bytes"] < floating["weight_bytes"] / 12
    with pytest.raises(SystemExit, match="holds a finished run"):
        main(["train", "digits-float"])
    main(["compare", "runs/digits-float", "runs/digits-w2a2-speq"])
    assert "digits-w2a2-speq" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "runs", "recipes", "study", "bench"])
def test_help_is_no_argument(command, capsys):
    main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: spequant {command}")


def test_low_bits_from_random_weights_are_told(tmp_path, capsys):
    main(["train", "cifar10-resnet20-w2a2-retrain", "--data.name", "digits", "--train.no-compile", "--dry-run"])
    said = capsys.readouterr()
    assert "low bits start from random weights" in said.err and re.search(r"median of 7; before it 3 in", said.out)


def test_misspelt_words_get_a_hint(capsys):
    for words in ([], ["--out", "a", "digits-float"]):
        with pytest.raises(SystemExit, match=r"no recipe is given; expected its name first"):
            main(["train", *words])
    with pytest.raises(SystemExit, match="did you mean digits-w2a2-speq"):
        main(["train", "digits-w2a2-spek"])
    with pytest.raises(SystemExit, match="did you mean train"):
        main(["trian"])
    with pytest.raises(SystemExit):
        main(["train", "digits-float", "--train.epoch", "3"])
    assert "--train.epochs" in capsys.readouterr().err


def test_wrong_values_get_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPEQUANT_DATA", raising=False)
    with pytest.raises(SystemExit, match=r"data\.root is not set"):
        main(["train", "cifar10-resnet20-w2a2-speq"])
    with pytest.raises(SystemExit, match="held_out is 9999"):
        main(["train", "digits-float", "--data.held-out", "9999"])
    with pytest.raises(SystemExit, match="measure_every is 0"):
        main(["train", "digits-float", "--data.measure-every", "0"])
    with pytest.raises(SystemExit, match=r"recipe\.json does not exist"):
        main(["evaluate", str(tmp_path)])
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


def test_the_penalty_on_clips_comes_from_the_recipe():
    choice = dataclasses.replace(RECIPES["digits-w2a2-speq"]().quant, act_decay=0.5)
    model = build_quantized(resnet8(in_channels=1), choice)
    decays = {(q.bits, q.decay) for q in act_quantizers(model).values() if isinstance(q, PACT)}
    assert decays == {(2, 0.5), (8, 2e-4)}  # ends and addends keep their own
    assert build_quantized(resnet8(in_channels=1), dataclasses.replace(choice, act="lsq"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    main(["train", "digits-w2a2-retrain", "--network.weights", "None", *SHORT, "--out", str(folder)])
    return folder


def test_resuming_what_is_finished_says_its_result(finished, capsys):
    arguments = ["digits-w2a2-retrain", "--network.weights", "None", *SHORT, "--out", str(finished), "--resume"]
    before = (finished / "result.json").stat().st_mtime_ns
    main(["train", *arguments])
    accuracy = json.loads((finished / "result.json").read_text())["test_accuracy"]
    assert f"test accuracy {accuracy:.2f} %" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"is of another recipe: train\.lr is 0\.04, expected 0\.5"):
        main(["train", *arguments, "--train.lr", "0.5"])
    assert (finished / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", b"short", "model.safetensors is no readable weight file"),
        ("recipe.json", b"[]", "recipe.json: recipe is \\[\\]; expected an object"),
        ("recipe.json", b"{", "recipe.json: recipe is no JSON"),
        ("recipe.json", b'"resnet8"', '"resnet9"'),
        ("recipe.json", b'"sawb"', '"minmax"'),
    ],
)
def test_a_damaged_run_is_refused(finished, tmp_path, file, content, said, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    if said.startswith('"'):
        (damaged / file).write_bytes((damaged / file).read_bytes().replace(content, said.encode()))
        said = "network.name is 'resnet9'; expected resnet8" if "9" in said else "another kind of quantizer"
    else:
        (damaged / file).write_bytes(content)
    with pytest.raises(SystemExit, match=said):
        main(["evaluate", str(damaged)])
    main(["runs", str(tmp_path)])  # one bad folder does not hide the others
    assert "damaged" in capsys.readouterr().out


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.th")
    with pytest.raises(SystemExit, match=r"tensor\.th holds a Tensor; expected tensors by name"):
        main(
            [
                "train",
                "digits-w2a2-retrain",
                "--network.weights",
                str(tmp_path / "tensor.th"),
                "--out",
                str(tmp_path / "x"),
            ]
        )
    with pytest.raises(SystemExit, match="recipes takes one name, but was given a b"):
        main(["recipes", "a", "b"])
    with pytest.raises(SystemExit, match="recipe is 'digits-flaot'; did you mean digits-float"):
        main(["recipes", "digits-flaot"])
