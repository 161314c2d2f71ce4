"""Finished runs side by side: mean and deviation of each arm over its seeds, and paired differences."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

# Student's t, 97.5 %, by degrees of freedom.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for one value."""
    return stdev(values) if len(values) > 1 else math.nan


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[float, float, int]:
    """(mean of b - a over the seeds of both, half width of its 95 % interval by Student's t, number of pairs)."""
    differences = [b[seed] - a[seed] for seed in sorted(set(a) & set(b))]
    n = len(differences)
    if n < 2:
        return (differences[0] if n else math.nan), math.nan, n
    t = T975[n - 2] if n - 2 < len(T975) else 1.96
    return mean(differences), t * stdev(differences) / math.sqrt(n), n


def read(folders: Sequence[Path], figure: str = "test_accuracy") -> dict[str, dict[int, float]]:
    """{recipe: {seed: figure}} of finished runs. FileNotFoundError names a folder without a result."""
    arms: dict[str, dict[int, float]] = {}
    for folder in folders:
        path = folder / "result.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; expected the folder of a finished run")
        result: dict[str, Any] = json.loads(path.read_text())
        if figure in result:
            arms.setdefault(result["recipe"], {})[result["seed"]] = result[figure]
    return arms


def report(folders: Sequence[Path]) -> Table:
    """A table of arms; the difference of each to the first, seed by seed."""
    figure = "test_accuracy"
    arms = read(folders, figure)
    if not arms:
        raise ValueError("compare takes the folders of finished runs, e.g. runs/a runs/a-seed1 runs/b runs/b-seed1")
    table = Table("arm", "seeds", figure.replace("_", " "), "deviation", "difference to the first (95 % interval)")
    first = next(iter(arms.values()))
    for name, values in arms.items():
        gap, half, pairs = paired(first, values)
        difference = "" if values is first else f"{gap:+.2f} +- {half:.2f} ({pairs} pairs)"
        numbers = list(values.values())
        table.add_row(name, str(len(values)), f"{mean(numbers):.2f}", f"{deviation(numbers):.2f}", difference)
    return table
