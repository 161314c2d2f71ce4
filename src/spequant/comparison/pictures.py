"""Pictures without a screen: an empty figure, its file, and limits of an axis that no outlier stretches."""

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spequant.extras import needs
from spequant.files import placed

CUT_BEYOND = 8.0
"""Interquartile ranges from the quartiles beyond which a value is an outlier, which is written instead of drawn."""
WIDEST = 32
"""Characters of the longest line of a label."""
MOST_WRITTEN = 3
"""Outliers in one place that are written."""


def blank(width: float, height: float) -> Any:
    """Return an empty figure of matplotlib, `width` x `height` inches, that needs no screen."""
    figure = needs("matplotlib.figure", "report").Figure(figsize=(width, height), layout="constrained")
    needs("matplotlib.backends.backend_agg", "report").FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> bytes:
    """Write a figure to `path` as PNG, 150 pixels per inch, whole or not at all; return the file's content."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    with placed(path) as temporary:
        temporary.write_bytes(content.getvalue())
    return content.getvalue()


def label(text: str) -> str:
    """Return `text` in lines of at most `WIDEST` characters, broken between words where that is possible."""
    return textwrap.fill(text, WIDEST, break_on_hyphens=False)


def within(values: Iterable[float]) -> tuple[float, float]:
    """Return the least and the largest of `values` that are finite and no outliers; (-inf, inf) if none is finite."""
    ordered = sorted(x for x in values if math.isfinite(x))
    if not ordered:
        return -math.inf, math.inf
    low, middle, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    reach = CUT_BEYOND * ((high - low) or abs(middle) or 1.0)
    near = [x for x in ordered if low - reach <= x <= high + reach]
    return near[0], near[-1]


def fit_limits(
    axes: Any, values: Iterable[float], ends: Iterable[float] = (), along: Literal["x", "y"] = "x"
) -> tuple[float, float]:
    """Choose the limits of an axis by all values but the outliers.

    Args:
        axes: matplotlib's, on a linear or a logarithmic scale.
        values: What is drawn; those that are not finite, or not above 0 on a logarithmic scale, are left out.
        ends: Ends of intervals. Those that are as near to the values as these are to each other are within the limits;
            a longer interval is cut.
        along: The axis.

    Returns:
        The limits, outside of which are the outliers.
    """
    log = getattr(axes, f"get_{along}scale")() == "log"
    drawn, reached = ([math.log10(x) if log else x for x in numbers if x > 0 or not log] for numbers in (values, ends))
    low, high = within(drawn)
    if not math.isfinite(low):
        return low, high
    near = [low, high, *(x for x in reached if 2 * low - high <= x <= 2 * high - low)]
    margin = ((max(near) - min(near)) or abs(low) or 1.0) * 0.08
    limits = min(near) - margin, max(near) + margin
    left, right = (10**x for x in limits) if log else limits
    getattr(axes, f"set_{along}lim")(left, right)
    return left, right


def write_outliers(
    axes: Any, place: float, values: Sequence[float], limits: tuple[float, float], along: Literal["x", "y"], digits: int
) -> None:
    """Write the values outside of `limits` at that end of the axis, with an arrow.

    Args:
        axes: matplotlib's.
        place: Where on the other axis.
        values: What belongs there; those within the limits are not written.
        limits: What `fit_limits` returned.
        along: The axis of the values.
        digits: Decimals of the numbers.
    """
    arrows = ("\u2190 {}", "{} \u2192") if along == "x" else ("{} \u2193", "{} \u2191")
    beyond = [v for v in values if v < limits[0]], [v for v in values if v > limits[1]]
    for outliers, arrow, edge in zip(beyond, arrows, (0.01, 0.99), strict=True):
        if not outliers:
            continue
        more = [f"{len(outliers) - MOST_WRITTEN} more"] * (len(outliers) > MOST_WRITTEN)
        words = arrow.format(", ".join([*(f"{v:.{digits}f}" for v in outliers[:MOST_WRITTEN]), *more]))
        style: dict[str, Any] = {
            "color": "firebrick",
            "fontsize": 8,
            "bbox": {"color": "white", "alpha": 0.7, "pad": 0.5},
        }
        if along == "x":
            side = "left" if edge < 0.5 else "right"
            axes.text(edge, place, words, transform=axes.get_yaxis_transform(), ha=side, va="bottom", **style)
        else:
            left, right = axes.get_xlim()
            share = (place - left) / (right - left)
            side = "left" if share < 0.2 else "right" if share > 0.8 else "center"
            up = "bottom" if edge < 0.5 else "top"
            axes.text(place, edge, words, transform=axes.get_xaxis_transform(), ha=side, va=up, **style)


@dataclass(frozen=True)
class DrawnRow:
    """A row of `draw_rows`.

    Args:
        values: One dot each.
        middle: Their mean; None: nothing is drawn.
        width: Half the width of the mean's interval; None: there is none.
        hollow: Those of `values` whose dots are hollow.
    """

    values: Sequence[float] = ()
    middle: float | None = None
    width: float | None = None
    hollow: Sequence[float] = ()


def draw_rows(axes: Any, rows: Sequence[DrawnRow], *, more: Sequence[float] = (), digits: int = 2) -> None:
    """Draw rows of dots from above to below, each with its mean and interval.

    An arrow at the edge says that an interval goes on there; outliers are written.

    Args:
        axes: matplotlib's.
        rows: At places 0, 1 ...
        more: What else the limits include.
        digits: Decimals of the outliers.
    """
    intervals = [(row.middle - row.width, row.middle + row.width) for row in rows if row.middle and row.width]
    low, high = fit_limits(
        axes, [*(v for row in rows for v in row.values), *more], [x for ends in intervals for x in ends]
    )
    for place, row in enumerate(rows):
        axes.plot(row.values, [place] * len(row.values), "o", color=f"C{place % 10}", alpha=0.6, markersize=6)
        axes.plot(row.hollow, [place] * len(row.hollow), "o", color="white", markersize=4)
        if row.middle is None:
            continue
        bar = {"color": "black", "elinewidth": 1, "markersize": 14, "capsize": 3}
        axes.errorbar(row.middle, place, xerr=row.width, fmt="|", **bar)
        if row.width is not None and row.middle - row.width < low:
            axes.plot(low, place, "<", color="black", markersize=5, clip_on=False)
        if row.width is not None and row.middle + row.width > high:
            axes.plot(high, place, ">", color="black", markersize=5, clip_on=False)
        outside = [v for v in row.values if not low <= v <= high]
        every = len(outside) == len(row.values)
        write_outliers(axes, place, [row.middle] if every else outside, (low, high), "x", digits)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
