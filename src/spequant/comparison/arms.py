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
from typing import Any, Literal

from spequant.comparison.pictures import DrawnRow, blank, draw_rows, label, save
from spequant.extras import needs

LEVEL = 0.95
"""Probability of the intervals."""
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
    unpaired: tuple[int, ...] = ()
    """seeds of this arm that the baseline does not have"""
    absent: tuple[int, ...] = ()
    """seeds of the baseline that this arm does not have"""

    def in_words(self, digits: int = 2) -> str:
        """Return the difference as "+0.31 ± 0.20 (5 pairs)", with `digits` decimals; "" for the baseline."""
        if self.difference is None:
            return "no seed in common" if self.pairs == 0 else ""
        difference = round(self.difference, digits) + 0.0  # no -0.00
        if self.interval is None:
            return f"{difference:+.{digits}f} (1 pair)"
        return f"{difference:+.{digits}f} ± {self.interval:.{digits}f} ({self.pairs} pairs)"


@dataclass(frozen=True)
class Comparison:
    """Arms, the first of which is the baseline."""

    arms: tuple[Arm, ...]
    figure: str = "value"
    """what the values are, e.g. "test accuracy, %" """
    digits: int = 2
    """decimals of numbers in text, LaTeX and picture; CSV and JSON have all"""
    better: Literal["higher", "lower"] | None = None
    """which values are better; None: not said"""
    notes: tuple[str, ...] = ()
    """what is not compared, and why; sentences"""

    @property
    def title(self) -> str:
        """The figure, and which values are better."""
        return self.figure if self.better is None else f"{self.figure} ({self.better} is better)"

    def csv(self) -> str:
        """Return one line per run: arm, seed, value."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["arm", "seed", "value"])
        writer.writerows([arm.name, seed, value] for arm in self.arms for seed, value in arm.values.items())
        return text.getvalue()

    def json(self) -> str:
        """Return figure, which values are better, notes, and arms with all their fields; what is undefined is null."""
        about = {"figure": self.figure, "better": self.better, "notes": self.notes}
        return json.dumps({**about, "arms": [asdict(arm) for arm in self.arms]}, indent=2)

    def latex(self) -> str:
        """Return a tabular for LaTeX with the package booktabs; above it the notes, as comments."""
        lines = [
            *(f"% {note}" for note in self.notes),
            r"\begin{tabular}{lrrr}",
            r"\toprule",
            rf"arm & seeds & {_escaped(self.title)} & difference (95\,\%) \\",
            r"\midrule",
        ]
        for arm in self.arms:
            deviation = "" if arm.deviation is None else rf" \pm {arm.deviation:.{self.digits}f}"
            interval = "" if arm.interval is None else rf" \pm {arm.interval:.{self.digits}f}"
            difference = (
                ""
                if arm.difference is None
                else rf"${round(arm.difference, self.digits) + 0.0:+.{self.digits}f}{interval}$"
            )
            value = rf"${arm.mean:.{self.digits}f}{deviation}$"
            lines.append(rf"{_escaped(arm.name)} & {len(arm.values)} & {value} & {difference} \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def plot(self, path: Path | str) -> None:
        """Draw each arm's seeds with mean and interval, and their paired differences to the baseline, as PNG.

        Args:
            path: The picture; after an exception an older file stays as it was.

        Raises:
            ModuleNotFoundError: matplotlib is not installed, or scipy, and an arm has several seeds.
        """
        lines = sum(1 + label(self._label(arm)).count("\n") for arm in self.arms)
        several = len(self.arms) > 1
        figure = blank(9, 1.4 + 0.4 * len(self.arms) + 0.15 * (lines - len(self.arms)))
        self.draw(*figure.subplots(1, 1 + several, sharey=True, squeeze=False, width_ratios=(3, 2)[: 1 + several])[0])
        save(figure, Path(path))

    def draw(self, left: Any, right: Any = None) -> None:
        """Draw on axes of matplotlib; arguments: for the values, and for the differences (None: without them)."""
        first, rows, gaps = self.arms[0], [], [DrawnRow()]
        for arm in self.arms:
            alone = [arm.values[seed] for seed in arm.unpaired]
            values = list(arm.values.values())
            rows.append(DrawnRow(values, arm.mean, half_width(values), alone))
        draw_rows(left, rows, digits=self.digits)
        left.set_yticks(range(len(rows)), [label(self._label(arm)) for arm in self.arms])
        arrow = {"higher": " \u2192", "lower": " \u2190", None: ""}[self.better]
        hollow = "; hollow: not paired" if any(arm.unpaired for arm in self.arms) else ""
        dots = f"dots: seeds{hollow}; bar: mean, 95 % interval"
        one = all(len(arm.values) == 1 for arm in self.arms)
        left.set_xlabel(f"{self.title}{arrow}\n{'one seed, no interval' if one else dots}")
        if right is None:
            return
        for arm in self.arms[1:]:
            both = [seed for seed in arm.values if seed in first.values]
            gaps.append(DrawnRow([arm.values[s] - first.values[s] for s in both], arm.difference, arm.interval))
        draw_rows(right, gaps, more=[0.0], digits=self.digits)
        right.axvline(0.0, color="0.5", linewidth=1)
        right.tick_params(left=False, labelleft=False)
        right.set_xlabel(label(f"difference to {first.name}") + "\npaired by seed")
        for row, arm in enumerate(self.arms):
            words = "" if arm.pairs else "no seed in common"
            place = {"transform": right.get_yaxis_transform(), "ha": "center", "va": "bottom"}
            right.text(0.5, row, words, color="0.4", fontsize=8, **place)

    def _label(self, arm: Arm) -> str:
        seeds = "1 seed" if len(arm.values) == 1 else f"{len(arm.values)} seeds"
        return f"{arm.name} ({seeds}{f', {arm.pairs} paired' if arm.unpaired else ''})"

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return the words of a table, with its header: arm, seeds, mean, deviation, difference."""
        table = [("arm", "seeds", self.title, "deviation", "difference to the first (95 %)")]
        for arm in self.arms:
            deviation = "-" if arm.deviation is None else f"{arm.deviation:.{self.digits}f}"
            words = arm.in_words(self.digits)
            table.append((arm.name, str(len(arm.values)), f"{arm.mean:.{self.digits}f}", deviation, words))
        return table

    def __str__(self) -> str:
        table = self.rows()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in table]
        return "\n".join([*(line.rstrip() for line in lines), *self.notes])


def compare(
    values: Mapping[str, Mapping[int, float]],
    *,
    figure: str = "value",
    digits: int = 2,
    better: Literal["higher", "lower"] | None = None,
) -> Comparison:
    """Compare arms with the first one. Seeds that only one of two arms has are not paired: the notes name them.

    Example:
        >>> print(spequant.compare({"Retrain": {0: 75.1, 1: 74.8}, "SPEQ": {0: 75.9, 1: 75.3}}))

    Args:
        values: Value by seed, by arm; the first arm is the baseline.
        figure: What the values are; a label.
        digits: Decimals of numbers in text, LaTeX and picture, 0 or more.
        better: Whether higher or lower values are better, to be said beside the figure; None: not said.

    Raises:
        ValueError: There is no arm, an arm has no value, a value is not finite, or `better` is another word.
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
    if better not in ("higher", "lower", None):
        raise ValueError(f"better is {better!r}; expected 'higher', 'lower' or None")
    baseline = next(iter(values.values()))
    arms = tuple(_arm(name, dict(arm), baseline, i == 0) for i, (name, arm) in enumerate(values.items()))
    return Comparison(arms, figure, digits, better, _not_paired(arms))


def _arm(name: str, values: dict[int, float], baseline: Mapping[int, float], first: bool) -> Arm:
    numbers = list(values.values())
    gap, half, pairs = (math.nan, math.nan, len(values)) if first else paired(baseline, values)
    alone, absent = (tuple(sorted(set(a) - set(b))) for a, b in ((values, baseline), (baseline, values)))
    spread = _or_none(deviation(numbers))
    return Arm(name, values, mean(numbers), spread, _or_none(gap), _or_none(half), pairs, alone, absent)


def _not_paired(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Return a sentence for each arm and each set of seeds that its difference leaves out."""
    first, notes = arms[0].name, []
    for arm in arms[1:]:
        for who, other, seeds in ((arm.name, first, arm.unpaired), (first, arm.name, arm.absent)):
            if seeds:
                numbers = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
                notes.append(f"not paired: {numbers} of {who}, without a run of {other}")
    return tuple(notes)


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
    width = half_width(differences)
    return mean(differences), math.nan if width is None else width, len(differences)


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation; NaN for one value."""
    return stdev(values) if len(values) > 1 else math.nan


def students_t() -> Any:
    """Return scipy's quantile of Student's t distribution, a function of (degrees of freedom, probability).

    Long work whose results are compared asks for it first, so that a missing scipy is noticed early.
    """
    return needs("scipy.special", "report").stdtrit


def half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of a mean, by Student's t; None for fewer than two values.

    Raises:
        ModuleNotFoundError: There are several values, and scipy is not installed.
    """
    n = len(values)
    return None if n < 2 else float(students_t()(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)
