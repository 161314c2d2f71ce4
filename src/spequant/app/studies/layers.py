"""The command `layers`: what the layers of a run did, as a table of the last look and a picture of all looks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from spequant.app.commands.screen import print_table
from spequant.app.commands.studies import LayersSettings
from spequant.app.recipes.serial import from_json
from spequant.app.runs.folder import RECIPE, rows_of, run_first
from spequant.comparison.pictures import blank, save, within
from spequant.extras import needs
from spequant.files import destination
from spequant.train import Looks, read_looks
from spequant.train.freezing import MAX_BITS

CLIPPED, USED, CHANGED = 0.05, 0.5, 0.01
"""a layer is marked if it clips a larger share, uses a smaller share of its levels, or, with `MAX_BITS` bits or fewer,
has a larger share of codes that still change"""
LEAST_SHARE = 1e-4
"""the share of changed codes at which the picture's colours begin"""
MOST_EPOCHS = 12
"""the largest number of epochs whose agreement is printed"""


def show_layers(settings: LayersSettings) -> None:
    """Print the table and write the picture.

    Raises:
        FileNotFoundError: there is no run, or no folder for the picture.
        ValueError: the run did not look at its layers, or the picture is no PNG.
    """
    looks = looks_of(settings.run)
    out = settings.out or settings.run / "layers.png"
    if out.suffix.lower() != ".png":
        raise ValueError(f"out is {out}; expected a file that ends in .png")
    destination(out)
    print_table(layers_table(looks))
    print(f"marked: {', '.join(marked(looks)) or 'none'}")
    if line := agreement_line(looks):
        print(line)
    seed = from_json((settings.run / RECIPE).read_text()).train.seed
    draw_layers(looks, out, f"one run, seed {seed}, no interval; ")
    print(f"by layer and epoch: {out}")


def looks_of(run: Path) -> Looks:
    """All looks of the run in the folder `run` at its layers.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the run did not look at its layers.
    """
    if not (run / RECIPE).is_file():
        raise FileNotFoundError(f"{run / RECIPE} does not exist; expected the folder of a run{run_first(run)}")
    looks = read_looks(rows_of(run, "layers"))
    if looks is None:
        raise ValueError(f"{run} did not look at its layers; expected a run trained with --train.layers-every 1")
    return looks


def layers_table(looks: Looks) -> Table:
    """A table with one row per layer, as it was at the last look."""
    table = Table(title=f"layers after epoch {looks.epochs[-1]}")
    since = f"since epoch {looks.epochs[-2]}" if len(looks.epochs) > 1 else "yet"
    for head in ("layer", "W", "A", "clipped, %", "levels", "low", "high", "largest weight"):
        table.add_column(head, justify="left" if head == "layer" else "right")
    table.add_column(f"codes changed {since}, %", justify="right")
    table.add_column("look at")
    last = {what: column[:, -1] for what, column in looks.values.items()}
    notes = remarks(looks)
    for i, name in enumerate(looks.names):
        row = {what: float(column[i]) for what, column in last.items()}
        bits = ["-" if b[i] is None else str(b[i]) for b in (looks.weight_bits, looks.act_bits)]
        levels = "-" if math.isnan(row["levels"]) else f"{row['levels']:.0f} of {looks.of[i]}"
        ranges = (_number(row[what], ".3g") for what in ("low", "high", "clip"))
        clipped, changed = (_number(100 * row[what], ".2f") for what in ("clipped", "changed"))
        note = "; ".join(notes[i])
        table.add_row(name, *bits, clipped, levels, *ranges, changed, note, style="yellow" if note else None)
    return table


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def remarks(looks: Looks) -> list[list[str]]:
    """What deserves attention at the last look, one list per layer; see `CLIPPED`."""
    last = (looks.values[what][:, -1] for what in ("clipped", "levels", "changed"))
    all_notes: list[list[str]] = []
    for clipped, levels, changed, of, bits in zip(*last, looks.of, looks.weight_bits, strict=True):
        notes = {
            "much is clipped": clipped > CLIPPED,
            "half the levels unused": of is not None and levels < USED * of,
            "codes still change": changed > CHANGED and bits is not None and bits <= MAX_BITS,
        }
        all_notes.append([note for note, holds in notes.items() if holds])
    return all_notes


def marked(looks: Looks) -> list[str]:
    """Each remark with the number of its layers, in words."""
    flat = [note for notes in remarks(looks) for note in notes]
    return [f"{note} ({flat.count(note)} of {len(looks.names)} layers)" for note in dict.fromkeys(flat)]


def agreement_line(looks: Looks) -> str:
    """Agreement of teacher and student by epoch, at `MOST_EPOCHS` looks or fewer with the last one; "" without any."""
    looked = [(e, a) for e, a in zip(looks.epochs, looks.agreement, strict=True) if a is not None]
    if not looked:
        return ""
    places = np.unique(np.linspace(0, len(looked) - 1, MOST_EPOCHS).round().astype(int))
    pairs = (f"{looked[i][0]}: {100 * looked[i][1]:.1f}" for i in places)
    return f"teacher and student agree, % of answers, by epoch: {', '.join(pairs)}"


def draw_layers(looks: Looks, out: Path, about: str = "") -> None:
    """Write three heat maps, layers downwards and epochs to the right: clipping, levels in use, codes changed (PNG).

    Args:
        looks: of a run.
        out: the picture.
        about: the run, in words.
    """
    colors = needs("matplotlib.colors", "report")
    of = np.array([math.nan if n is None else n for n in looks.of])[:, None]
    clipped, changed = 100 * looks.values["clipped"], looks.values["changed"]
    most = max(100 * CLIPPED, within(clipped.ravel())[1])
    panels: tuple[tuple[str, np.ndarray, Any, str], ...] = (
        ("clipped, %", clipped, colors.Normalize(0, most), "magma_r"),
        ("levels in use, %", 100 * looks.values["levels"] / of, colors.Normalize(0, 100), "magma"),
        ("codes changed, %", 100 * np.maximum(changed, LEAST_SHARE), colors.LogNorm(100 * LEAST_SHARE, 100), "magma_r"),
    )
    rows, columns = clipped.shape
    names = max(map(len, looks.names))
    width = min(12, max(6.6, 0.12 * 3 * columns))
    picture = blank(1 + 0.075 * names + width, 1.8 + 0.16 * rows)
    all_axes = picture.subplots(1, len(panels), sharey=True)
    ticks = np.unique(np.linspace(0, columns - 1, min(columns, 6)).round().astype(int))
    for axes, (title, values, norm, colours) in zip(all_axes, panels, strict=True):
        axes.set_facecolor("lightgrey")
        shown = axes.imshow(values, norm=norm, cmap=colours, aspect="auto", interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(ticks, [str(looks.epochs[i]) for i in ticks], fontsize=8)
        axes.set_xlabel("epoch", fontsize=8)
        beyond = title.startswith("clipped") and bool(np.nanmax(values, initial=0) > most)
        extend = "max" if beyond else "neither"
        picture.colorbar(shown, ax=axes, location="bottom", aspect=25, extend=extend).ax.tick_params(labelsize=8)
    for row in np.flatnonzero((clipped > most).any(1)):  # one number per layer that is off the scale
        column = int(np.nanargmax(clipped[row]))
        style = {"color": "white", "fontsize": 7, "va": "center", "bbox": {"color": "black", "pad": 1}}
        side = "left" if column < columns / 2 else "right"
        all_axes[0].text(column, row, f"{clipped[row, column]:.0f}", ha=side, **style)
    all_axes[0].set_yticks(range(rows), looks.names, fontsize=7)
    picture.supxlabel(f"{about}grey: not of this layer, or not known yet", fontsize=8, color="dimgrey")
    save(picture, out)
