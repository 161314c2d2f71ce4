"""The command `compare`: arms paired by seed, against figures worked out by hand; what is not paired; files."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.cli import main
from spequant.app.recipes import RECIPES, Recipe
from spequant.methods import Retrain
from support.made_up_runs import finished, written


def result(folder: Path, name: str, seed: int, recipe: Recipe | None = None, **figures: float) -> str:
    recipe = recipe or RECIPES["digits-w2a2-speq"]()
    finished(folder, replace(recipe, name=name, train=replace(recipe.train, seed=seed)), **figures)
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


def with_bits(bits: int) -> Recipe:
    recipe = RECIPES["digits-w2a2-speq"]()
    return replace(recipe, quant=replace(recipe.quant, weight_bits=bits))


def test_arms_are_named_by_what_differs(tmp_path, capsys):
    """Options of one method are no difference to another method; what runs have apart from the seed is said."""
    recipe = RECIPES["digits-w2a2-speq"]()
    kinds = [
        with_bits(2),
        with_bits(3),
        replace(with_bits(3), method=replace(recipe.method, temperature=4.0)),
        replace(recipe, method=Retrain.Settings()),
    ]
    runs = [
        result(tmp_path / f"{seed}-{i}", "a", seed, made, test_accuracy=70.0 + i)
        for i, made in enumerate(kinds)
        for seed in (0, 1)
    ]
    started = replace(recipe, network=replace(recipe.network, weights=tmp_path))
    runs.append(result(tmp_path / "other", "a", 2, started, test_accuracy=70.0))
    main(["compare", *runs, "--json", str(tmp_path / "c.json")])
    content = json.loads((tmp_path / "c.json").read_text())
    assert {arm["name"]: sorted(arm["values"]) for arm in content["arms"]} == {
        "a quant.weight_bits=2 method=speq method.temperature=1.0": ["0", "1", "2"],
        "a quant.weight_bits=3 method=speq method.temperature=1.0": ["0", "1"],
        "a quant.weight_bits=3 method=speq method.temperature=4.0": ["0", "1"],
        "a quant.weight_bits=2 method=retrain": ["0", "1"],
    }
    assert [arm["difference"] for arm in content["arms"]] == [None, 1.0, 2.0, 3.0]
    told = "method.temperature=1.0 differ in network.weights"
    assert any(told in note for note in content["notes"]) and told in capsys.readouterr().out


def test_starts_tell_arms_apart_where_nothing_else_does(tmp_path):
    recipe = RECIPES["digits-w2a2-speq"]()
    made = [replace(recipe, network=replace(recipe.network, weights=Path(start))) for start in ("runs/x", "runs/y")]
    runs = [result(tmp_path / f"{i}", "a", 0, start, test_accuracy=70.0 + i) for i, start in enumerate(made)]
    main(["compare", *runs, "--csv", str(tmp_path / "c.csv")])
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines == ["arm,seed,value", "a network.weights=runs/x,0,70.0", "a network.weights=runs/y,0,71.0"]


def test_what_is_not_paired_is_said_everywhere(tmp_path, capsys):
    runs = [result(tmp_path / f"{arm}{s}", arm, s, test_accuracy=70.0 + s) for arm, s in (("a", 0), ("b", 0), ("b", 5))]
    unfinished = tmp_path / "unfinished"
    written(unfinished, RECIPES["digits-w2a2-speq"]())
    diverged = tmp_path / "diverged"
    written(diverged, RECIPES["digits-w2a2-speq"]())
    (diverged / "diverged.txt").write_text("the loss")
    files = {kind: str(tmp_path / f"c.{kind}") for kind in ("json", "latex")}
    main(["compare", *runs, str(unfinished), str(diverged), *(w for k, f in files.items() for w in (f"--{k}", f))])
    printed = capsys.readouterr().out
    for text in (printed, *(Path(file).read_text() for file in files.values())):
        assert "seed 5 of b, without a run of a" in text
        assert f"{unfinished}, which is stopped" in text and f"{diverged}, which is diverged" in text


def test_files_that_cannot_be_written_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("spequant.app.studies.compare.read_runs", lambda folders: pytest.fail("it began"))
    for options, named in (
        (["--csv", f"{tmp_path}/none/c.csv"], "none does not exist"),
        (["--latex", str(tmp_path)], "is a folder"),
        (["--plot", f"{tmp_path}/c.pdf"], r"plot is .*c\.pdf; expected .*\.png"),
        (["--csv", f"{tmp_path}/c", "--json", f"{tmp_path}/c"], "json is .*--csv"),
    ):
        with pytest.raises(SystemExit, match=named):
            main(["compare", "run", *options])
    assert not list(tmp_path.iterdir())


def test_compare_refuses_what_it_cannot_tell_apart_or_find(tmp_path):
    one = result(tmp_path / "one", "a", 0, test_accuracy=70.0)
    two = result(tmp_path / "two", "a", 0, test_accuracy=71.0)
    with pytest.raises(SystemExit, match=r"/two and .*/one .* seed 0"):
        main(["compare", one, two])
    with pytest.raises(SystemExit, match=r"metric is 'held_out_accuracy'.*/one; .*test_accuracy.*--data.held-out"):
        main(["compare", one, "--metric", "held_out_accuracy"])
    with pytest.raises(SystemExit, match=r"metric is 'acuracy'.* did you mean test_accuracy"):
        main(["compare", one, "--metric", "acuracy"])
    with pytest.raises(SystemExit, match=r"recipe\.json does not exist"):
        main(["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="runs/a runs/a-seed1"):
        main(["compare"])
    with pytest.raises(SystemExit, match=r"no run is finished.*/none, .*stopped"):
        main(["compare", str(written(tmp_path / "none", RECIPES["digits-float"]()))])


def test_the_metric_is_chosen_and_which_is_better_is_said(tmp_path, capsys):
    figures = {"test_f1": 80.0, "test_exact_match": 70.0, "held_out_f1": 75.0}
    run = result(tmp_path / "one", "a", 0, test_mean_absolute_error=0.5, **figures)
    for metric, title in (
        ("f1", "test f1, % (higher is better)"),
        ("exact_match", "test exact match, % (higher is better)"),
        ("held_out_f1", "held out f1, % (higher is better)"),
        ("mean_absolute_error", "test mean absolute error (lower is better)"),
    ):
        main(["compare", run, "--metric", metric])
        assert title in capsys.readouterr().out


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


def test_figures_of_other_tasks(tmp_path, capsys):
    """Errors are in the unit of the targets; a run may have no other figure."""
    errors = (0.0788, 0.0712)
    runs = [result(tmp_path / str(i), "a", i, test_mean_absolute_error=e) for i, e in enumerate(errors)]
    main(["compare", *runs])
    printed = capsys.readouterr().out
    assert "test mean absolute error" in printed and "0.0750" in printed and "0.0054" in printed
    main(["runs", str(tmp_path)])
    assert "0.0788" in capsys.readouterr().out


def test_an_interval_without_scipy_names_the_extra(tmp_path, monkeypatch, capsys):
    runs = [result(tmp_path / f"{arm}{seed}", arm, seed, test_accuracy=70.0) for arm in "ab" for seed in (0, 1)]
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(SystemExit, match=r"scipy\.special is not installed: .*'spequant\[report\]'"):
        main(["compare", *runs])
    main(["compare", runs[0], runs[2]])  # one seed has no interval
    assert "+0.00 (1 pair)" in capsys.readouterr().out
