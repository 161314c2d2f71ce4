"""Pictures: a blank one, and curves of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spequant.app.recipes.folder import rows_of
from spequant.extras import needs
from spequant.files import placed


def blank(width: float, height: float) -> Any:
    """A figure of matplotlib, inches, that needs no screen."""
    figure = needs("matplotlib.figure", "report").Figure(figsize=(width, height), layout="constrained")
    needs("matplotlib.backends.backend_agg", "report").FigureCanvasAgg(figure)
    return figure


def draw_curves(
    arms: Mapping[str, Sequence[Path]], out: Path, figures: Sequence[str] = ("task", "train_accuracy")
) -> None:
    """One panel a figure of metrics.jsonl's epoch rows, one colour an arm, one line a run; written to `out` (PNG)."""
    labels = {"task": "cross-entropy", "train_accuracy": "accuracy on training images, %"}
    picture = blank(5 * len(figures), 3.5)
    for axes, figure in zip(picture.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
        for colour, (arm, folders) in enumerate(arms.items()):
            for i, folder in enumerate(folders):
                rows = [row for row in rows_of(folder, "epoch") if figure in row]
                x, y = [row["epoch"] for row in rows], [row[figure] for row in rows]
                axes.plot(x, y, color=f"C{colour}", label=arm if i == 0 else None, linewidth=1)
        axes.set_xlabel("epoch")
        axes.set_ylabel(labels.get(figure, figure.replace("_", " ")))
        if figure == "task":
            axes.set_yscale("log")
        axes.legend(frameon=False)
    with placed(out) as temporary:
        picture.savefig(temporary, dpi=150, format="png")
