"""What the commands say: on a terminal, lines that move; in a log, a pipe or a notebook, plain lines."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from spequant.app.commands.screen import moves
from spequant.app.runs.folder import figures
from spequant.app.runs.reporter import Item
from spequant.train import Progress as State


class Terminal:
    """A reporter: a bar with time left, loss (on the labels), accuracy and images a second; one line per epoch.

    Where lines do not move, each phase is one line, and has none the next time.

    Args:
        name: Of what is done, e.g. a run.
        number, of: The number of this run among those that are to be done, from 1 on, and how many these are.
    """

    def __init__(self, name: str, number: int = 1, of: int = 1):
        self.name = name if of == 1 else f"[{number}/{of}] {name}"
        self.after = of - number
        """runs that follow"""
        self.live, self.read, self.last_epoch = moves(), 0.0, 0.0
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(20),
            _Clock(),
            TextColumn("{task.fields[now]}"),
        )
        self.bar = Progress(*columns, console=Console(), disable=not self.live, transient=True, refresh_per_second=4)
        self.training = self.bar.add_task(self.name, total=1.0, start=False, now="", visible=False)
        self.other = self.bar.add_task("", total=None, now="", visible=False)
        self.said: set[str] = set()
        self.in_phase = False

    def __enter__(self) -> "Terminal":
        return self  # the bar starts with the first phase: of several processes one alone is told of phases

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def phase(self, text: str) -> None:
        if self.live:
            self.in_phase = True
            self.bar.update(self.training, visible=False)
            self.bar.remove_task(self.other)
            self.other = self.bar.add_task(f"{self.name}  {text}", total=None, now="")
            self.bar.start()
        elif text not in self.said:
            self.said.add(text)
            print(f"{self.name}  {text}", file=sys.stderr, flush=True)  # results alone are on the standard output

    def track(self, batches: Iterable[Item], count: int) -> Iterator[Item]:
        self.bar.update(self.other, total=count)
        for batch in batches:
            yield batch
            self.bar.advance(self.other)

    def step(self, progress: State) -> None:
        """Reading the losses waits for the device, so at most once a second."""
        if not self.live:
            return
        if self.in_phase:
            self.in_phase = False
            self.bar.update(self.other, visible=False)
            self.bar.update(self.training, visible=self.read > 0)
        if time.monotonic() - self.read < 1:
            return
        row = progress.row()
        self.read = time.monotonic()
        self.bar.start_task(self.training)
        task = next(task for task in self.bar.tasks if task.id == self.training)
        left = task.time_remaining or 0.0
        every = left + self.after * left / max(1e-9, 1 - progress.done)
        parts = [
            f"about {in_time(every)} of all runs" if self.after and left else "",
            f"loss {row['task']:.3f}",
            _right(row, "acc", 1),
            f"{row['images_per_second']:.0f} a second",
        ]
        self.bar.update(
            self.training,
            description=f"{self.name}  epoch {row['epoch']}/{progress.epochs}",
            completed=progress.done,
            now="  ".join(filter(None, parts)),
            visible=True,
        )
        self.bar.start()

    def say(self, line: str) -> None:
        if self.live:
            self.bar.print(f"{self.name}  {line}", markup=False, highlight=False)
        else:
            print(f"{self.name}  {line}", flush=True)

    def epoch(self, row: dict[str, Any]) -> None:
        now = time.monotonic()
        seconds = max(row["seconds"], now - self.last_epoch if self.last_epoch else 0)  # with what is measured
        self.last_epoch = now
        left = seconds * (row["epochs"] - row["epoch"])
        whole = f", about {in_time(left + self.after * seconds * row['epochs'])} of all runs" if self.after else ""
        parts = [
            f"epoch {row['epoch']}/{row['epochs']}  loss {row['task']:.4f}  distill {row['distill']:.4f}",
            _right(row, "train", 2),
            numbers_in_words(figures(row, "held_out_")),
            f"{row['images_per_second']:.0f} a second  {in_time(left)} left{whole}",
        ]
        self.say("  ".join(filter(None, parts)))


class _Clock(ProgressColumn):
    """The time that is left, or the time that has passed where the work is not counted."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text(in_time(task.elapsed or 0) if left is None else f"{in_time(left)} left", no_wrap=True)


def title_of(name: str, seed: int) -> str:
    """Return what lines about a run begin with; `name`: of its recipe, arm or folder."""
    return name if name.endswith(f"-seed{seed}") else f"{name}, seed {seed}"


def in_time(seconds: float) -> str:
    """Return "21 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def numbers_in_words(numbers: dict[str, float]) -> str:
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
