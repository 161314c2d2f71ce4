"""Studies: demo, ladder, compare, on the digits."""

import json
import re
from dataclasses import replace

import pytest

from spequant.cli import main
from spequant.recipes import RECIPES
from spequant.recipes.schema import to_json
from spequant.studies.compare import deviation, difference, paired


def test_demo_writes_table_curves_metrics_and_networks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["demo", "--epochs", "1", "--seeds", "2"])
    printed = capsys.readouterr().out
    assert re.search(r"SPEQ W2A2\s+│ \d+\.\d\d\s+│ \d+\.\d\d", printed) and "paired" in printed
    out = tmp_path / "runs" / "demo"
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(out.glob("*/metrics.jsonl"))) == len(list(out.glob("*/model.safetensors"))) == 5
    (out / "mine").mkdir()
    main(["demo", "--epochs", "1", "--seeds", "1"])  # over the earlier one
    assert {p.name for p in out.iterdir() if p.is_dir()} == {
        *("mine", "digits-float", "digits-w2a2-retrain-seed0", "digits-w2a2-speq-seed0")
    }


@pytest.mark.parametrize("name", ["thesis.tex", "digits-float/model.safetensors"])
def test_the_demo_does_not_remove_what_is_not_its_own(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(SystemExit, match="was not made by a demo"):
        main(["demo", "--out", str(tmp_path)])
    assert (tmp_path / name).exists()


@pytest.fixture(scope="module")
def float_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("float") / "digits-float"
    main(["train", "digits-float", "--train.epochs", "4", "--out", str(folder)])
    return folder


def test_ladder_names_the_worst_layer_of_each_rung(float_run, tmp_path, capsys):
    settings = "--data.name digits --data.held-out 200 --data.no-augment --network.name resnet8 --train.no-compile"
    arguments = settings.replace("--", "--recipe.").split()
    arguments += ["--recipe.network.weights", str(float_run), "--out", str(tmp_path / "ladder")]
    main(["ladder", *arguments])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "ladder" / "ladder.json").read_text())
    rungs = {r["rung"]: r for r in found["rungs"]}
    assert list(rungs) == ["W8A8", "W4A4", "W2A8", "W8A2", "W2A2"]
    assert all(r["worst_layer"] in printed for r in rungs.values())
    # Eight bits cost next to nothing, two bits much, and a layer alone less than all of them together.
    assert abs(rungs["W8A8"]["calibrated_test"] - found["float"]["test"]) < 1
    assert rungs["W2A2"]["calibrated_test"] < rungs["W8A8"]["calibrated_test"] - 2
    assert rungs["W2A2"]["worst_layer_loss"] > rungs["W8A8"]["worst_layer_loss"]
    with pytest.raises(SystemExit, match="exists; give another --out"):
        main(["ladder", *arguments])


def test_the_ladder_asks_for_a_float_network():
    with pytest.raises(SystemExit, match=r"recipe\.network\.weights is not set"):
        main(["ladder"])


def result(folder, name, seed, recipe=None, **figures):
    folder.mkdir()
    recipe = recipe or RECIPES["digits-w2a2-speq"]()
    (folder / "recipe.json").write_text(to_json(replace(recipe, name=name, train=replace(recipe.train, seed=seed))))
    (folder / "result.json").write_text(json.dumps({"recipe": name, "seed": seed, "seconds": 9.0, **figures}))
    return str(folder)


def test_compare_pairs_arms_by_seed(tmp_path, capsys):
    name = "a-recipe-with-a-rather-long-name-that-must-not-be-cut-off-in-a-log"
    runs = [
        result(tmp_path / f"{arm}{seed}", arm, seed, test_accuracy=70.0 + seed + gain * (1 + seed))
        for arm, gain in (("plain", 0), (name, 1.0))
        for seed in range(3)
    ]
    main(["compare", *runs])
    printed = capsys.readouterr().out
    assert name in printed and "+2.00 ± 2.48 (3 pairs)" in printed
    main(["compare", runs[0], runs[3]])
    assert "+1.00 (1 pair)" in capsys.readouterr().out


def test_compare_refuses_what_it_cannot_tell_apart_or_find(tmp_path):
    one = result(tmp_path / "one", "a", 0, test_accuracy=70.0)
    two = result(tmp_path / "two", "a", 0, test_accuracy=71.0)
    with pytest.raises(SystemExit, match=r"two is a second run of a with seed 0.* --name"):
        main(["compare", one, two])
    with pytest.raises(SystemExit, match="not measured by a, seed 0"):
        main(["compare", one, "--figure", "held_out_accuracy"])
    with pytest.raises(SystemExit, match=r"result\.json does not exist"):
        main(["compare", str(tmp_path)])
    recipe = RECIPES["digits-w2a2-speq"]()
    started = replace(recipe, network=replace(recipe.network, weights=tmp_path))
    main(["compare", one, result(tmp_path / "three", "a", 1, started, test_accuracy=71.0)])
    other = replace(recipe, quant=replace(recipe.quant, weight_bits=8))
    four = result(tmp_path / "four", "a", 2, other, test_accuracy=71.0)
    with pytest.raises(SystemExit, match=r"four is another .*quant\.weight_bits is 8, expected 2.* --name"):
        main(["compare", one, four])


@pytest.mark.parametrize("content", ["{", "[1]", '{"seed": 0}'])
def test_a_damaged_result_is_named(tmp_path, content, capsys):
    whole = result(tmp_path / "whole", "a", 0, test_accuracy=70.0)
    damaged = result(tmp_path / "damaged", "a", 1, test_accuracy=70.0)
    (tmp_path / "damaged" / "result.json").write_text(content)
    with pytest.raises(SystemExit, match=r"damaged/result\.json is"):
        main(["compare", whole, damaged])
    main(["runs", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "result.json unreadable" in printed and "70.00" in printed


def test_paired_difference():
    a, b = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 2.5, 2: 4.5, 7: 9.0}
    gap, half, pairs = paired(a, b)
    assert (gap, pairs) == (1.0, 3) and half == pytest.approx(4.303 * 0.5 / 3**0.5, rel=1e-3)
    many = {seed: float(seed) for seed in range(25)}
    _, half, _ = paired({seed: 0.0 for seed in many}, many)
    assert half == pytest.approx(2.0639 * deviation(list(many.values())) / 5, rel=1e-3)  # past the table of t
    assert deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert difference(a, {5: 1.0}) == "no seed in common"
