"""Draws the pictures of docs/concepts from what the library computes: python tools/concept_pictures.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

import spequant
from spequant.quantizers import PACT

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
LOW, HIGH, INK, PALE = "#b45309", "#1d4ed8", "#1f2937", "#f3f4f6"
plt.rcParams |= {"font.size": 12, "svg.hashsalt": "spequant", "axes.edgecolor": "0.4"}


def main() -> None:
    """Draw all pictures."""
    for draw in (rounding, speq, widths, checks):
        figure = draw()
        figure.savefig(PICTURES / f"{draw.__name__}.svg", metadata={"Date": None})
        plt.close(figure)


def rounding() -> plt.Figure:
    """A quantizer's output and its gradient over the input: PACT at 2 bits, its clip at 1."""
    quantizer = PACT(2, signed=False)
    quantizer.set_clip(torch.tensor(1.0))
    quantizer.calibrated = True
    x = torch.linspace(-0.5, 1.5, 2001, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    left.plot(x.detach(), x.detach().clamp(0, 1), "--", color="0.6", label="clipped input")
    left.plot(x.detach(), y.detach(), color=LOW, linewidth=2, label="quantized")
    left.set(xlabel="activation", title="forward: four values", yticks=[0, 1 / 3, 2 / 3, 1])
    left.set_yticklabels(["0", "clip / 3", "2 clip / 3", "clip"])
    left.legend(frameon=False, loc="upper left")
    assert x.grad is not None
    right.plot(x.detach(), x.grad, color=HIGH, linewidth=2)
    right.set(xlabel="activation", title="backward: gradient of the input", yticks=[0, 1], ylim=(-0.1, 1.35))
    right.annotate("trains\nthe clip", (1.27, 0.02), (1.27, 0.5), ha="center", arrowprops={"arrowstyle": "->"})
    for axes in (left, right):
        axes.set_xticks([0, 1], ["0", "clip"])
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def speq() -> plt.Figure:
    """The two passes of SPEQ: a draw of the teacher's bits, the student's bits, and which loss compares what."""
    layers = ["first", "2", "3", "4", "5", "last"]
    home = dict(zip(layers, [8, 2, 2, 2, 2, 8], strict=True))
    drawn = spequant.Stochastic(high_bits=8, probability=0.5).draw(home, np.random.default_rng(1))
    figure, axes = canvas(8.6, 4.6)
    for y, name, bits in ((3.55, "teacher", drawn), (1.45, "student", list(home.values()))):
        axes.text(0.05, y, name, va="center", ha="left", weight="bold")
        for i, width in enumerate(bits):
            box(axes, 1.55 + 0.82 * i, y, f"{width}", "#dbeafe" if width == 8 else "#fef3c7", 0.62)
            if i:
                arrow(axes, (1.04 + 0.82 * (i - 1) + 0.84, y), (1.22 + 0.82 * i, y))
        arrow(axes, (6.0, y), (6.35, y))
        box(axes, 6.95, y, "softmax", PALE, 1.1)
    axes.text(3.6, 2.5, "the same weights; only the bits of activations differ", ha="center", va="center")
    axes.text(3.6, 4.25, "bits drawn anew at every step", ha="center", va="center", color="0.35")
    axes.text(3.6, 0.75, "bits as trained and as shipped", ha="center", va="center", color="0.35")
    box(axes, 6.95, 2.5, "1 − cosine", "#dcfce7", 1.35)
    arrow(axes, (6.95, 3.25), (6.95, 2.8))
    arrow(axes, (6.95, 1.75), (6.95, 2.2))
    box(axes, 6.95, 0.4, "cross-entropy to labels", "#dcfce7", 2.6)
    arrow(axes, (6.95, 1.15), (6.95, 0.7))
    axes.text(7.65, 3.55, "no\ngradient", va="center", color="0.35")
    axes.text(7.65, 1.45, "gradient", va="center", color="0.35")
    return figure


def widths() -> plt.Figure:
    """The levels of one quantizer at several widths: bounds stay, and each level of the trained grid stays a level."""
    quantizer = PACT(2, signed=False)
    figure, axes = plt.subplots(figsize=(8, 2.9), layout="constrained")
    home = np.linspace(0, 1, quantizer.levels_at(2))
    shown = (2, 3, 4, 8)
    for row, bits in enumerate(shown):
        levels = np.linspace(0, 1, quantizer.levels_at(bits))
        size = 12 if bits < 8 else 5
        axes.plot(levels, [-row] * len(levels), "|", color=HIGH, markersize=size, markeredgewidth=1.2)
        assert all(np.isclose(levels, level).any() for level in home)
    axes.vlines(home, -len(shown) + 0.6, 0.35, color=LOW, linewidth=1, linestyle=":")
    axes.set_yticks(range(0, -len(shown), -1), [f"{b} bits, {quantizer.levels_at(b)} levels" for b in shown])
    axes.set_xticks([0, 1], ["0", "clip"])
    axes.set_ylim(-len(shown) + 0.5, 0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return figure


def checks() -> plt.Figure:
    """What an export compares with what."""
    figure, axes = canvas(8.6, 2.9)
    stations = {"network\n(PyTorch)": 0.95, "integer\nprogram": 3.2, "file": 5.3, "engine": 7.55}
    for name, x in stations.items():
        box(axes, x, 2.3, name, PALE, 1.5, 0.9)
    for start, end, how in ((1.72, 2.43, "lower"), (3.97, 4.53, "write"), (6.07, 6.78, "run")):
        arrow(axes, (start, 2.3), (end, 2.3))
        axes.text((start + end) / 2, 2.42, how, ha="center", va="bottom", color="0.35")
    for left, right, y, what in (
        (0.95, 7.75, 0.3, "same answers, same values"),
        (3.2, 7.35, 1.0, "same codes per layer"),
    ):
        axes.plot([left, left, right, right], [1.82, y, y, 1.82], color=HIGH, linewidth=1.4)
        axes.text((left + right) / 2, y + 0.1, what, ha="center", va="bottom", color=HIGH)
    return figure


def canvas(width: float, height: float) -> tuple[plt.Figure, Axes]:
    """An empty picture whose units are inches."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, text: str, color: str, width: float, height: float = 0.6) -> None:
    """A rounded box around `text`, its middle at (x, y)."""
    corner = x - width / 2, y - height / 2
    axes.add_patch(
        FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.1", facecolor=color, edgecolor="0.4")
    )
    axes.text(x, y, text, ha="center", va="center", color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow from `start` to `end`."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0})


if __name__ == "__main__":
    main()
