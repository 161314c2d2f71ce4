"""Pictures: curves of runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from spequant.app.runs.folder import rows_of
from spequant.pictures import blank, save

CURVES = {"task": "cross-entropy", "train_accuracy": "accuracy on training images, %"}
"""columns of metrics.jsonl's epoch rows that `draw_curves` shows, with the labels of their axes"""


def draw_curves(arms: Mapping[str, Iterable[Path]], out: Path) -> None:
    """Draw loss and accuracy over the epochs: one colour per arm, one line per run.

    Args:
        arms: folders of runs by arm.
        out: the picture, PNG.
    """
    picture = blank(5 * len(CURVES), 3.5)
    for axes, (column, label) in zip(picture.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for colour, (arm, folders) in enumerate(arms.items()):
            for i, folder in enumerate(folders):
                rows = [row for row in rows_of(folder, "epoch") if column in row]
                x, y = [row["epoch"] for row in rows], [row[column] for row in rows]
                axes.plot(x, y, color=f"C{colour}", label=arm if i == 0 else None, linewidth=1)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.legend(frameon=False)
    picture.axes[0].set_yscale("log")
    save(picture, out)
