"""Pictures of several runs: means over seeds as lines with their intervals, and curves of training."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from spequant.app.runs.folder import figures, main_figure, rows_of
from spequant.comparison import half_width
from spequant.comparison.pictures import blank, fit_limits, save, within, write_outliers

Points = Sequence[tuple[float, Sequence[float]]]
"""[(place on the x axis, one value per seed)]"""


def draw_lines(axes: Any, lines: Mapping[str, Points], *, band: bool = False, digits: int = 1) -> None:
    """Draw one line per label: means over seeds with their 95 % intervals. The legend says the numbers of seeds.

    Args:
        axes: matplotlib's.
        lines: {label: points}, one or more each.
        band: for curves of training: intervals are a band with a thin line per seed, instead of bars at each point, and
            a linear y axis is fitted without their first third, after which they differ by little.
        digits: decimals of outliers, which are written at the edge.
    """
    stats = {label: [(x, mean(values), half_width(values) or 0.0) for x, values in lines[label]] for label in lines}
    late = {label: len(lines[label]) // 3 if band and axes.get_yscale() == "linear" else 0 for label in lines}
    values = [v for label, points in lines.items() for _, values in points[late[label] :] for v in values]
    ends = [m + s * half for label in lines for _, m, half in stats[label][late[label] :] for s in (-1, 1)]
    low, high = limits = fit_limits(axes, values, ends, along="y")
    outside: dict[float, list[float]] = {}
    for i, (label, points) in enumerate(lines.items()):
        places, means, halves = map(list, zip(*stats[label], strict=True))
        seeds = max(len(values) for _, values in points)
        name = f"{label} ({'one seed, no interval' if seeds == 1 else f'{seeds} seeds'})"
        if not any(low <= m <= high for m in means):
            name += f", outside: {means[-1]:.{digits}f}"
        if band:
            _draw_band(axes, points, stats[label], f"C{i}", name)
        else:
            beside = (i - (len(lines) - 1) / 2) * any(halves)  # so that bars do not hide others
            aside = 0.02 * beside * (max(places) - min(places))
            style: dict[str, Any] = {"color": f"C{i}", "marker": "osD^v"[i % 5], "capsize": 3, "markersize": 5}
            axes.errorbar([x + aside for x in places], means, yerr=halves if seeds > 1 else None, label=name, **style)
        for j in {0, len(means) - 1} if band else range(len(means)):
            outside.setdefault(places[j], []).append(means[j])
    for x, means in outside.items():
        write_outliers(axes, x, sorted(means), limits, "y", digits)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))  # above: it hides nothing


def _draw_band(axes: Any, points: Points, stats: Sequence[tuple[float, float, float]], colour: str, name: str) -> None:
    seeds = max(len(values) for _, values in points)
    for seed in range(seeds if seeds > 1 else 0):
        of_one = [(x, values[seed]) for x, values in points if seed < len(values)]
        axes.plot([x for x, _ in of_one], [v for _, v in of_one], color=colour, linewidth=0.7, alpha=0.8)
    places = [x for x, _, _ in stats]
    ends = ([m + side * half for _, m, half in stats] for side in (-1, 1))
    axes.fill_between(places, *ends, color=colour, alpha=0.2, linewidth=0)
    axes.plot(places, [m for _, m, _ in stats], color=colour, label=name, linewidth=2)


def draw_grids(
    figure: Any, panels: Mapping[str, Sequence[Sequence[Sequence[float]]]], widths: Sequence[int], what: str
) -> None:
    """Draw heat maps, weight bits downwards and activation bits to the right, two beside each other, on one scale.

    A cell has the mean over seeds and half the width of its 95 % interval; the scale is without outliers.

    Args:
        figure: matplotlib's; it becomes as high as it needs.
        panels: {title: [row][column][seed] values}.
        widths: bits of rows and columns.
        what: the values are, for the colour bar.
    """
    every = [mean(values) for rows in panels.values() for row in rows for values in row]
    low, high = within(every)
    if low == high:  # a scale of one value would show it in any colour
        low, high = low - 0.5, high + 0.5
    side = 1 + 0.5 * len(widths)
    figure.set_size_inches(9, side * -(-len(panels) // 2) + 0.5)
    all_axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False)
    for axes, (title, rows) in zip(all_axes.flat, panels.items(), strict=False):
        means = [[mean(values) for values in row] for row in rows]
        shown = axes.imshow(means, vmin=low, vmax=high, aspect="auto")
        for i, row in enumerate(rows):
            for j, values in enumerate(row):
                half, dark = half_width(values), means[i][j] < (low + high) / 2
                words = f"{means[i][j]:.1f}" + ("" if half is None else f"\n\u00b1 {half:.1f}")
                axes.text(j, i, words, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        axes.set_xticks(range(len(widths)), widths)
        axes.set_yticks(range(len(widths)), widths)
        axes.set_xlabel("activation bits")
        axes.set_ylabel("weight bits")
        axes.set_title(title, fontsize=9)
    beyond = (min(every) < low) + 2 * (max(every) > high)
    bar = figure.colorbar(shown, ax=list(all_axes.flat), extend=("neither", "min", "max", "both")[beyond])
    seeds = len(next(iter(panels.values()))[0][0])
    bar.set_label(f"{what}\n{'one seed, no interval' if seeds == 1 else f'mean of {seeds} seeds, ± 95 %'}")


def draw_curves(arms: Mapping[str, Iterable[Path]], out: Path) -> None:
    """Draw the loss on training images, and the figure on held-out samples where there are some, over the epochs.

    Args:
        arms: folders of runs by arm.
        out: the picture, PNG.
    """
    rows = {arm: [list(rows_of(folder, "epoch")) for folder in folders] for arm, folders in arms.items()}
    every = [row for runs in rows.values() for run in runs for row in run]
    held_out = list(dict.fromkeys(name for row in every for name in figures(row, "held_out_")))
    columns = {"task": "loss on the training images"}
    if held_out:
        name = main_figure(held_out)
        unit = "" if name.endswith("_error") else ", %"
        columns[name] = f"{name.replace('held_out', 'held-out').replace('_', ' ')}{unit}"
    picture = blank(5 * len(columns), 4 + 0.15 * len(rows))
    for axes, (column, label) in zip(picture.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True):
        if column == "task":
            axes.set_yscale("log")
        draw_lines(axes, {arm: p for arm, runs in rows.items() if (p := _points(runs, column))}, band=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if every:
        picture.supxlabel("thin: seeds; thick: mean; band: its 95 % interval", fontsize=8, color="dimgrey")
    save(picture, out)


def _points(runs: Sequence[Sequence[Mapping[str, Any]]], column: str) -> Points:
    """One point per epoch, with the values of the runs that have one."""
    values: dict[int, list[float]] = {}
    for row in (row for run in runs for row in run if column in row):
        values.setdefault(row["epoch"], []).append(row[column])
    return sorted(values.items())
