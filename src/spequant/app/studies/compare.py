"""The command `compare`: mean and deviation of each arm over its seeds, and paired differences."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from spequant.app.commands.studies import Compare
from spequant.app.recipes import Recipe
from spequant.app.recipes.serial import differences, from_json
from spequant.app.runs.folder import RECIPE, figures, main_figure, read_result
from spequant.app.terminal import print_table
from spequant.comparison import compare

SEED_FIELDS = ("train.seed ", "network.weights ", "method.teacher ")
"""fields in which the runs of an arm may differ"""


def check_seeds(seeds: Sequence[int]) -> None:
    """ValueError: `seeds` are no numbers from 0 on, each once."""
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {tuple(seeds)!r}; expected numbers from 0 on, each once, e.g. --seeds 0 1 2")


def read(folders: Sequence[Path]) -> dict[str, dict[int, dict[str, Any]]]:
    """Read the results of finished runs.

    Returns:
        {name of the recipe: {seed: result}}.

    Raises:
        FileNotFoundError: a folder has no result.
        ValueError: two runs of one name have one seed, or differ in more than seed and start.
    """
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    recipes: dict[str, Recipe] = {}
    for folder in folders:
        result = read_result(folder)
        recipe = from_json((folder / RECIPE).read_text())
        first = recipes.setdefault(result["recipe"], recipe)
        if changes := [d for d in differences(recipe, first) if not d.startswith(SEED_FIELDS)]:
            raise ValueError(
                f"{folder} is another experiment than the first run of {result['recipe']}: {'; '.join(changes)}. Train "
                "variants of a recipe with --name, so that each is an arm of its own"
            )
        arm = arms.setdefault(result["recipe"], {})
        if result["seed"] in arm:
            raise ValueError(
                f"{folder} is a second run of {result['recipe']} with seed {result['seed']}; "
                "train variants of a recipe with --name, so that each is an arm of its own"
            )
        arm[result["seed"]] = result
    return arms


def report(settings: Compare) -> Table:
    """A table with one row per arm and its difference to the first arm.

    Raises:
        ValueError: there is no folder, or a run does not have the figure.
    """
    arms = read(settings.runs)
    if not arms:
        raise ValueError("compare takes the folders of finished runs, e.g. runs/a runs/a-seed1 runs/b runs/b-seed1")
    result = next(iter(next(iter(arms.values())).values()))
    figure = settings.figure or main_figure(figures(result, "test_"))
    without = [f"{name}, seed {seed}" for name, arm in arms.items() for seed, r in arm.items() if figure not in r]
    if without:
        measured = ", ".join([*figures(result, "test_"), *figures(result, "held_out_")])
        raise ValueError(
            f"figure is {figure!r}, not measured by {'; '.join(without)}; the first run has {measured} (held_out_... "
            "where it is trained with --data.held-out)"
        )
    values = {name: {seed: result[figure] for seed, result in arm.items()} for name, arm in arms.items()}
    digits = 4 if figure.endswith("_error") else 2  # errors are in the unit of the targets, others in percent
    header, *rows = compare(values, figure=figure.replace("_", " "), digits=digits).rows()
    table = Table(*header, "seconds a run")
    for row in rows:
        table.add_row(*row, f"{mean(result['seconds'] for result in arms[row[0]].values()):.0f}")
    return table


def print_comparison(settings: Compare) -> None:
    print_table(report(settings))
