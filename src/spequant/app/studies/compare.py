"""Finished runs side by side: mean and deviation of each arm over its seeds, and paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

from rich.table import Table
from tyro.conf import Positional

from spequant.app.recipes import Recipe
from spequant.app.recipes.folder import RECIPE, figures, main_figure, read_result
from spequant.app.recipes.schema import differences, from_json
from spequant.extras import needs

OF_A_SEED = ("train.seed ", "network.weights ", "method.teacher ")
"""fields in which the runs of an arm may differ"""


@dataclass(frozen=True)
class Compare:
    """Which runs, and what of them. Runs of one recipe name are one arm, paired with the first arm by seed."""

    runs: Annotated[tuple[Path, ...], Positional]
    """folders of finished runs; the first one's arm is what the others are compared with"""
    figure: str | None = None
    """test_accuracy, held_out_accuracy; of questions test_f1, test_exact_match, held_out_f1, held_out_exact_match;
    None: test_accuracy, or test_f1"""


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for one value."""
    return stdev(values) if len(values) > 1 else math.nan


def students_t() -> Any:
    """The function of (degrees of freedom, probability) that gives the quantile of Student's t distribution.

    Long work whose results are compared asks for it before it begins.
    """
    return needs("scipy.special", "report").stdtrit


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[float, float, int]:
    """(mean of b - a over the seeds of both, half width of its 95 % interval by Student's t, number of pairs)."""
    differences = [b[seed] - a[seed] for seed in sorted(set(a) & set(b))]
    n = len(differences)
    if n < 2:
        return (differences[0] if n else math.nan), math.nan, n
    return mean(differences), float(students_t()(n - 1, 0.975)) * stdev(differences) / math.sqrt(n), n


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> str:
    """`paired` in words: +0.31 ± 0.20 (5 pairs); without an interval where there is one pair alone."""
    gap, half, pairs = paired(a, b)
    if not pairs:
        return "no seed in common"
    return f"{gap:+.2f} (1 pair)" if pairs == 1 else f"{gap:+.2f} ± {half:.2f} ({pairs} pairs)"


def read(folders: Sequence[Path]) -> dict[str, dict[int, dict[str, Any]]]:
    """{recipe: {seed: result}} of finished runs.

    FileNotFoundError names a folder without a result; ValueError two runs of one name that are of one seed, or differ
    in more than seed and start.
    """
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    recipes: dict[str, Recipe] = {}
    for folder in folders:
        result = read_result(folder)
        recipe = from_json((folder / RECIPE).read_text())
        first = recipes.setdefault(result["recipe"], recipe)
        if other := [d for d in differences(recipe, first) if not d.startswith(OF_A_SEED)]:
            raise ValueError(
                f"{folder} is another experiment than the first run of {result['recipe']}: {'; '.join(other)}. Train "
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
    """A table of arms; the difference of each to the first, seed by seed.

    ValueError where no folder is given, or a run has not the figure asked for.
    """
    arms = read(settings.runs)
    if not arms:
        raise ValueError("compare takes the folders of finished runs, e.g. runs/a runs/a-seed1 runs/b runs/b-seed1")
    one = next(iter(next(iter(arms.values())).values()))
    figure = settings.figure or main_figure(figures(one, "test_"))
    without = [f"{name}, seed {seed}" for name, arm in arms.items() for seed, r in arm.items() if figure not in r]
    if without:
        known = ", ".join([*figures(one, "test_"), *figures(one, "held_out_")])
        raise ValueError(
            f"figure is {figure!r}, not measured by {'; '.join(without)}; the first run has {known} (held_out_... "
            "where it is trained with --data.held-out)"
        )
    table = Table(
        "arm", "seeds", figure.replace("_", " "), "deviation", "difference to the first (95 %)", "seconds a run"
    )
    values = {name: {seed: result[figure] for seed, result in arm.items()} for name, arm in arms.items()}
    first = next(iter(values))
    for name, arm in values.items():
        numbers = list(arm.values())
        table.add_row(
            name,
            str(len(arm)),
            f"{mean(numbers):.2f}",
            f"{deviation(numbers):.2f}" if len(numbers) > 1 else "-",
            "" if name == first else difference(values[first], arm),
            f"{mean(r['seconds'] for r in arms[name].values()):.0f}",
        )
    return table
