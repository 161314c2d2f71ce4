"""The command `compare`: arms paired by seed, against figures worked out by hand; runs that are no arms of one."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.cli import main
from spequant.app.recipes import RECIPES, Recipe
from support.made_up_runs import finished


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


def test_compare_refuses_what_it_cannot_tell_apart_or_find(tmp_path):
    one = result(tmp_path / "one", "a", 0, test_accuracy=70.0)
    two = result(tmp_path / "two", "a", 0, test_accuracy=71.0)
    with pytest.raises(SystemExit, match=r"two is .* a with seed 0.* --name"):
        main(["compare", one, two])
    with pytest.raises(SystemExit, match=r"figure is 'held_out_accuracy'.* a, seed 0.*test_accuracy.*--data.held-out"):
        main(["compare", one, "--figure", "held_out_accuracy"])
    with pytest.raises(SystemExit, match=r"result\.json does not exist"):
        main(["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="runs/a runs/a-seed1"):
        main(["compare"])
    recipe = RECIPES["digits-w2a2-speq"]()
    started = replace(recipe, network=replace(recipe.network, weights=tmp_path))
    main(["compare", one, result(tmp_path / "three", "a", 1, started, test_accuracy=71.0)])
    other = replace(recipe, quant=replace(recipe.quant, weight_bits=8))
    four = result(tmp_path / "four", "a", 2, other, test_accuracy=71.0)
    with pytest.raises(SystemExit, match=r"four is .*quant\.weight_bits is 8, expected 2.* --name"):
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
