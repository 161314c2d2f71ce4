"""What the commands say, on a terminal (one line that moves) or in a log (plain lines)."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from spequant.app.runs.folder import figures
from spequant.train import Progress as State


class Terminal:
    """A reporter: a bar with time left, loss (on the labels), accuracy and images a second; one line an epoch."""

    def __init__(self, name: str):
        self.name, self.console, self.read = name, Console(), 0.0
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[now]}")
        self.bar = Progress(*columns, console=self.console, disable=not sys.stdout.isatty(), transient=True)
        self.task = self.bar.add_task(name, total=1.0, now="")

    def __enter__(self) -> "Terminal":
        return self  # the bar starts with the first step: of several processes one alone is told of steps

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, progress: State) -> None:
        """Reading the losses waits for the device, so at most once a second."""
        if self.bar.disable or time.monotonic() - self.read < 1:
            return
        self.bar.start()
        row = progress.row()
        self.read = time.monotonic()
        parts = [f"loss {row['task']:.3f}", _right(row, "acc", 1), f"{row['images_per_second']:.0f} a second"]
        now = "  ".join(filter(None, parts))
        self.bar.update(self.task, completed=progress.done, now=now)

    def say(self, line: str) -> None:
        if self.bar.disable:
            print(f"{self.name}  {line}", flush=True)
        else:
            self.bar.print(f"{self.name}  {line}")

    def epoch(self, row: dict[str, Any]) -> None:
        left = row["seconds"] * (row["epochs"] - row["epoch"])
        parts = [
            f"epoch {row['epoch']}/{row['epochs']}  loss {row['task']:.4f}  distill {row['distill']:.4f}",
            _right(row, "train", 2),
            in_words(figures(row, "held_out_")),
            f"{row['images_per_second']:.0f} a second  {left:.0f} s left",
        ]
        line = "  ".join(filter(None, parts))
        self.say(line)


def in_words(numbers: dict[str, float]) -> str:
    """Figures with their names: "test accuracy 91.20 %"."""
    return "  ".join(
        f"{name.replace('held_out', 'held-out').replace('_', ' ')} {figure_in_words(name, x)}"
        for name, x in numbers.items()
    )


def figure_in_words(name: str, value: float) -> str:
    """A figure in percent, or in the targets' unit if it is named ..._error."""
    return f"{value:.4g}" if name.endswith("_error") else f"{value:.2f} %"


def _right(row: dict[str, Any], name: str, digits: int) -> str:
    """The share of right answers in training; nothing, where the task counts none."""
    return f"{name} {row['train_accuracy']:.{digits}f} %" if "train_accuracy" in row else ""


def print_table(table: Table) -> None:
    """In a log as wide as it needs: nothing is cut off there."""
    Console(width=None if sys.stdout.isatty() else 240).print(table)
