"""The study `sensitivity`: layers measured, their widths within a budget, and the arms that come of them."""

import itertools
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.cli import main
from spequant.app.runs import load_run
from spequant.app.studies import mixed
from spequant.app.studies.mixed import LayerMeasures, layer_measures
from spequant.app.studies.planned import Plans
from spequant.app.studies.workshop import Workshop
from spequant.app.train import parsed_train
from spequant.deploy import LayerCost, model_costs
from spequant.deploy.c.footprint import Footprint
from support.made_up_runs import Run
from support.study_files import SMALL, rows_of, smoke

WEIGHTS = {"end": 4096, "a": 1024, "b": 2048, "c": 512}
LOSSES = {2: (0.3, 0.2, 0.1), 3: (0.1, 0.15, 0.05), 4: (0.05, 0.01, 0.02), 8: (0.0, 0.0, 0.0)}
"""of a, b and c alone"""


def made_up() -> LayerMeasures:
    """Three layers of one to four KiB a byte of their weights, and one that keeps 8 bits."""

    def cost(name: str, bits: int) -> LayerCost:
        own, count = 8 if name == "end" else bits, WEIGHTS[name]
        return LayerCost(name, "Linear", own, own, None, None, count, count * own // 8, 4 * count, 1000 * count)

    alone = {bits: dict(zip("abc", losses, strict=True)) for bits, losses in LOSSES.items()}
    costs = {bits: {name: cost(name, bits) for name in WEIGHTS} for bits in LOSSES}
    return LayerMeasures(
        alone, {"a": -0.1, "b": 0.0, "c": 0.1}, costs, "7 made-up images", Plans(planned, tuple(LOSSES))
    )


def planned(bits: dict[str, int]) -> Footprint:
    """What these layers take as C: one after the other is read."""
    alive = tuple(WEIGHTS[name] * bits[name] // 8 for name in "abc")
    return Footprint(sum(alive), max(alive), 40, (), {}, alive)


@pytest.mark.parametrize("what", ["size", "bit-operations"])
def test_the_widths_of_a_budget_are_the_best_of_the_whole_network(what):
    layers = made_up()
    sizes = {name: count // 8 for name, count in WEIGHTS.items()}
    assert (
        layers.cost({"a": 2, "b": 3, "c": 8}, "size") == 8 * sizes["end"] + 2 * sizes["a"] + 3 * sizes["b"] + 4096 // 8
    )
    every = [dict(zip("abc", widths, strict=True)) for widths in itertools.product(LOSSES, repeat=3)]
    budget = (layers.cost(dict.fromkeys("abc", 2), what) + layers.cost(dict.fromkeys("abc", 3), what)) / 2
    within = [widths for widths in every if layers.cost(widths, what) <= budget]
    losses = [sum(layers.alone[bits][name] for name, bits in widths.items()) for widths in within]
    assert 1 < len(within) < len(every) and layers.best(budget, what) == within[losses.index(min(losses))]


def test_layers_of_a_run_are_measured(digits_run, monkeypatch):
    monkeypatch.setattr(mixed, "LAYER_WIDTHS", (2, 8))
    recipe, model, test = load_run(digits_run)
    recipe = replace(recipe, quant=replace(recipe.quant, percentile=99.9), data=replace(recipe.data, images=512))
    layers = layer_measures(recipe, model)
    assert layers.images == "200 held-out images" and set(layers.alone) == set(layers.costs) == {2, 8}
    assert list(layers.alone[2]) == list(layers.raised) and len(layers.raised) == 6  # all but the ends
    assert sum(layers.alone[2].values()) > 3 * abs(sum(layers.alone[8].values()))
    own = model_costs(model, test.normalise(test.images[:1]))
    everywhere = dict.fromkeys(layers.raised, 2)
    assert layers.cost(everywhere, "size") == sum(cost.size for cost in own)
    assert layers.cost(everywhere, "bit-operations") == sum(cost.bit_operations for cost in own)
    without = replace(recipe, data=replace(recipe.data, held_out=0))
    monkeypatch.setattr(mixed, "LAYER_IMAGES", 10)
    assert layer_measures(without, model).images == "10 training images"
    other = replace(recipe, quant=replace(recipe.quant, weight_bits=5))
    with pytest.raises(ValueError, match=r"run .*expected low bits"):
        layer_measures(other, model)


@pytest.mark.parametrize(("what", "column"), [("size", "KiB"), ("ram", "KiB of memory")])
def test_mixed_bits_within_a_budget(what, column, tmp_path, monkeypatch):
    """The study, with made-up runs of made-up layers."""
    monkeypatch.setattr("spequant.app.studies.arms.run", Run())
    monkeypatch.setattr(Workshop, "finished", lambda shop, folder: (None, None))
    monkeypatch.setattr(mixed, "layer_measures", lambda recipe, model, planner: made_up())
    rows = smoke("sensitivity", tmp_path, "--seeds", "0", "--budget", what, *SMALL)
    assert [row["arm"] for row in rows[:3]] == ["Retrain", "W2A2", "W3A3"] and "mixed" in rows[3]["arm"]
    small, large, between = (float(row[column]) for row in rows[1:])
    assert ("KiB of flash" in rows[1]) == (what == "ram")
    assert small <= between <= (small + large) / 2 < large  # within the budget
    layers = rows_of(tmp_path, "sensitivity-layers")
    assert [(row["layer"], row["alone at 3 bits"]) for row in layers] == [
        ("a", "0.1000"),
        ("b", "0.1500"),
        ("c", "0.0500"),
    ]
    chosen = {f"{row['layer']}={row[rows[3]['arm']]}" for row in layers}
    words = shlex.split(rows[3]["command"])
    assert set(parsed_train(words[2], words[3:]).recipe.quant.overrides) == chosen
    assert "7 made-up images" in (tmp_path / "sensitivity.md").read_text()


def test_mixed_bits_of_a_run(tmp_path, monkeypatch, digits_run):
    """At its recipe, from where it started: three budgets between 2, 3 and 4 bits."""
    run = Run()
    monkeypatch.setattr("spequant.app.studies.arms.run", run)
    monkeypatch.setattr(mixed, "layer_measures", lambda recipe, model, planner: made_up())
    command = ["study", "sensitivity", "--seeds", "0", "--out", str(tmp_path)]
    main([*command, str(digits_run)])
    rows = rows_of(tmp_path, "sensitivity")
    assert [row["arm"] for row in rows if "mixed" not in row["arm"]] == ["Retrain", "W2A2", "W3A3", "W4A4"]
    operations = [float(row["million bit operations"]) for row in rows[1:]]
    assert sum("mixed" in row["arm"] for row in rows) == 3 and min(operations) == operations[0]
    weights = digits_run.parent / "digits-float"
    assert all(f"--network.weights {weights} " in row["command"] for row in rows) and len(run.trained) == 7
    with pytest.raises(SystemExit, match=r"run is .*digits-float, of recipe 'digits-float'"):
        main([*command, "--resume", str(weights)])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sensitivity_of_a_run(tmp_path, monkeypatch, digits_run):
    """Whole."""
    monkeypatch.chdir(tmp_path)
    main(["study", "sensitivity", str(digits_run), "--seeds", "0", "--epochs", "1"])
    rows = rows_of(Path("runs/study-sensitivity"), "sensitivity")
    assert [row["arm"] for row in rows if "mixed" not in row["arm"]] == ["Retrain", "W2A2", "W3A3", "W4A4"]
    operations = [float(row["million bit operations"]) for row in rows[1:]]
    assert sum("mixed" in row["arm"] for row in rows) == 3 and min(operations) == operations[0]
