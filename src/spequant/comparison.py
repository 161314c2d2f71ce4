"""Arms of an experiment compared: mean and deviation over seeds, and differences paired by seed with their intervals.

An arm is one way to train; its runs differ only in the seed. Two arms that share seeds are compared by the differences
between runs of the same seed, which vary less than the runs themselves.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from spequant.extras import needs
from spequant.files import placed

LEVEL = 0.95
"""Probability of the intervals."""
FAR = 8.0
"""Interquartile ranges from the quartiles beyond which an arm is not drawn to scale."""
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}
"""Characters that LaTeX reads as commands, and how they are written."""


@dataclass(frozen=True)
class Arm:
    """One arm, and its difference to the baseline."""

    name: str
    values: dict[int, float]
    """value by seed"""
    mean: float
    deviation: float | None
    """sample standard deviation; None for one seed"""
    difference: float | None
    """mean of this arm minus the baseline over the seeds of both; None without such a seed, and for the baseline"""
    interval: float | None
    """half the width of the 95 % interval of `difference`, by Student's t; None with fewer than two pairs"""
    pairs: int
    """number of seeds in both arms"""

    def in_words(self, digits: int = 2) -> str:
        """Return the difference as "+0.31 ± 0.20 (5 pairs)", with `digits` decimals; "" for the baseline."""
        if self.difference is None:
            return "no seed in common" if self.pairs == 0 else ""
        if self.interval is None:
            return f"{self.difference:+.{digits}f} (1 pair)"
        return f"{self.difference:+.{digits}f} ± {self.interval:.{digits}f} ({self.pairs} pairs)"


@dataclass(frozen=True)
class Comparison:
    """Arms, the first of which is the baseline."""

    arms: tuple[Arm, ...]
    figure: str = "value"
    """what the values are, e.g. "test accuracy, %" """
    digits: int = 2
    """decimals of numbers in text, LaTeX and picture; CSV and JSON have all"""

    def csv(self) -> str:
        """Return one line per run: arm, seed, value."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["arm", "seed", "value"])
        writer.writerows([arm.name, seed, value] for arm in self.arms for seed, value in arm.values.items())
        return text.getvalue()

    def json(self) -> str:
        """Return figure and arms with all their fields; what is undefined is null."""
        return json.dumps({"figure": self.figure, "arms": [asdict(arm) for arm in self.arms]}, indent=2)

    def latex(self) -> str:
        """Return a tabular for LaTeX with the package booktabs."""
        lines = [
            r"\begin{tabular}{lrrr}",
            r"\toprule",
            rf"arm & seeds & {_escaped(self.figure)} & difference (95\,\%) \\",
            r"\midrule",
        ]
        for arm in self.arms:
            deviation = "" if arm.deviation is None else rf" \pm {arm.deviation:.{self.digits}f}"
            interval = "" if arm.interval is None else rf" \pm {arm.interval:.{self.digits}f}"
            difference = "" if arm.difference is None else rf"${arm.difference:+.{self.digits}f}{interval}$"
            value = rf"${arm.mean:.{self.digits}f}{deviation}$"
            lines.append(rf"{_escaped(arm.name)} & {len(arm.values)} & {value} & {difference} \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def plot(self, path: Path | str) -> None:
        """Draw each arm's seeds with their mean and its interval, and the differences to the baseline, as PNG.

        Args:
            path: The picture; after an exception an older file stays as it was.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        figure = needs("matplotlib.figure", "report").Figure(
            figsize=(8, 1.3 + 0.45 * len(self.arms)), layout="constrained"
        )
        needs("matplotlib.backends.backend_agg", "report").FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        rows = range(len(self.arms))
        seeds = [list(arm.values.values()) for arm in self.arms]
        _fit(
            left, [_ends(a.mean, _half_width(v), len(v), v) for a, v in zip(self.arms, seeds, strict=True)], self.digits
        )
        _fit(right, [_ends(a.difference or 0.0, a.interval, a.pairs, [0.0]) for a in self.arms], self.digits)
        for row, arm in enumerate(self.arms):
            values = seeds[row]
            left.plot(values, [row] * len(values), "o", color=f"C{row % 10}", alpha=0.5, markersize=5)
            left.errorbar(arm.mean, row, xerr=_half_width(values), fmt="|", color="black", markersize=14, capsize=3)
            if arm.difference is not None:
                width = arm.interval or 0.0
                right.errorbar(arm.difference, row, xerr=width, fmt="o", color=f"C{row % 10}", capsize=3)
        right.axvline(0.0, color="0.5", linewidth=1)
        left.set_yticks(list(rows), [f"{arm.name} ({_seeds(len(arm.values))})" for arm in self.arms])
        left.invert_yaxis()
        left.set_xlabel(f"{self.figure}\n(seeds, mean with 95 % interval)")
        right.set_xlabel(f"difference to {self.arms[0].name}\n(paired by seed, 95 % interval)")
        for axes in (left, right):
            axes.margins(y=0.15)
            axes.spines[["top", "right"]].set_visible(False)
        with placed(Path(path)) as temporary:
            figure.savefig(temporary, format="png", dpi=150)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return the words of a table, with its header: arm, seeds, mean, deviation, difference."""
        table = [("arm", "seeds", self.figure, "deviation", "difference to the first (95 %)")]
        for arm in self.arms:
            deviation = "-" if arm.deviation is None else f"{arm.deviation:.{self.digits}f}"
            words = arm.in_words(self.digits)
            table.append((arm.name, str(len(arm.values)), f"{arm.mean:.{self.digits}f}", deviation, words))
        return table

    def __str__(self) -> str:
        table = self.rows()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in table]
        return "\n".join(line.rstrip() for line in lines)


def compare(values: Mapping[str, Mapping[int, float]], *, figure: str = "value", digits: int = 2) -> Comparison:
    """Compare arms with the first one.

    Example:
        >>> print(spequant.compare({"Retrain": {0: 75.1, 1: 74.8}, "SPEQ": {0: 75.9, 1: 75.3}}))

    Args:
        values: Value by seed, by arm; the first arm is the baseline.
        figure: What the values are; a label.
        digits: Decimals of numbers in text, LaTeX and picture, 0 or more.

    Raises:
        ValueError: There is no arm, an arm has no value, or a value is not finite.
        ModuleNotFoundError: Two arms share several seeds, and scipy is not installed.
    """
    if not values:
        raise ValueError("values is empty; expected at least one arm, {name: {seed: value}}")
    for name, arm in values.items():
        if not isinstance(arm, Mapping) or not arm:
            raise ValueError(f"values has {arm!r} for {name!r}; expected {{seed: value}} with at least one seed")
        for seed, value in arm.items():
            if not math.isfinite(value):
                raise ValueError(f"values has {value!r} for {name!r}, seed {seed!r}; expected a finite number")
    baseline = next(iter(values.values()))
    arms = tuple(_arm(name, dict(arm), baseline, i == 0) for i, (name, arm) in enumerate(values.items()))
    return Comparison(arms, figure, digits)


def _arm(name: str, values: dict[int, float], baseline: Mapping[int, float], first: bool) -> Arm:
    numbers = list(values.values())
    gap, half, pairs = (math.nan, math.nan, len(values)) if first else paired(baseline, values)
    return Arm(name, values, mean(numbers), _or_none(deviation(numbers)), _or_none(gap), _or_none(half), pairs)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[float, float, int]:
    """Return the mean difference of two arms, paired by seed.

    Args:
        a: Value by seed of the arm that is compared with.
        b: Value by seed of the other arm.

    Returns:
        The mean of b - a over the seeds of both, half the width of its 95 % interval by Student's t, and the number of
        pairs. The mean is NaN without a pair, and the interval with fewer than two.

    Raises:
        ModuleNotFoundError: There are several pairs, and scipy is not installed.
    """
    differences = [b[seed] - a[seed] for seed in sorted(set(a) & set(b))]
    if not differences:
        return math.nan, math.nan, 0
    width = _half_width(differences)
    return mean(differences), math.nan if width is None else width, len(differences)


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation; NaN for one value."""
    return stdev(values) if len(values) > 1 else math.nan


def students_t() -> Any:
    """Return scipy's quantile of Student's t distribution, a function of (degrees of freedom, probability).

    Long work whose results are compared asks for it first, so that a missing scipy is noticed early.
    """
    return needs("scipy.special", "report").stdtrit


def _half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the interval of a mean; None for fewer than two values."""
    n = len(values)
    return None if n < 2 else float(students_t()(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n)


def _fit(axes: Any, rows: Sequence[tuple[float, float, float]], digits: int) -> None:
    """Choose the limits of the x axis by most of the rows, and write the others as numbers at its ends.

    Neither a wide interval of few seeds nor an arm far from all others squeezes the rest together.

    Args:
        axes: matplotlib's.
        rows: Per arm the value by which it is near or far, and the least and largest value that is shown if it is near.
        digits: Decimals of the numbers.
    """
    values = sorted(value for value, _, _ in rows)
    low, middle, high = (values[round(share * (len(values) - 1))] for share in (0.25, 0.5, 0.75))
    reach = FAR * ((high - low) or abs(middle) or 1.0)
    near = [low - reach <= value <= high + reach for value, _, _ in rows]
    left = min(least for (_, least, _), shown in zip(rows, near, strict=True) if shown)
    right = max(most for (_, _, most), shown in zip(rows, near, strict=True) if shown)
    margin = ((right - left) or 1.0) * 0.1
    axes.set_xlim(left - margin, right + margin)
    for row, ((value, _, _), shown) in enumerate(zip(rows, near, strict=True)):
        if not shown:
            words = f"\u2190 {value:.{digits}f}" if value < left else f"{value:.{digits}f} \u2192"
            place, side = (0.02, "left") if value < left else (0.98, "right")
            axes.text(place, row, words, transform=axes.get_yaxis_transform(), ha=side, va="center")


def _ends(middle: float, width: float | None, count: int, values: Sequence[float]) -> tuple[float, float, float]:
    """Return a row for `_fit`: all values, and the interval if it is one of three values or more."""
    reach = width if width is not None and count > 2 else 0.0
    return middle, min(middle - reach, *values), max(middle + reach, *values)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)
