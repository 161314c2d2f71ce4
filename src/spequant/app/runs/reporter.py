"""Where a run, an export or a measurement reports its progress."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from spequant.train import Progress

Item = TypeVar("Item")
Track = Callable[[Iterable[Any], int], Iterable[Any]]
"""`Reporter.track`"""


class Reporter(Protocol):
    """Receives the progress of a run: each phase, each step, the row of each epoch, and single lines of text."""

    def phase(self, text: str) -> None:
        """Note what begins now, which may take more than two seconds, e.g. "calibrating"."""
        ...

    def track(self, batches: Iterable[Item], count: int) -> Iterable[Item]:
        """Return the same batches, `count` of them, and note how many of the present phase are done."""
        ...

    def step(self, progress: Progress) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def say(self, line: str) -> None: ...


def untracked(batches: Iterable[Item], count: int) -> Iterable[Item]:
    """Return `batches` as they are."""
    return batches


class Quiet:
    """A reporter that shows nothing."""

    def phase(self, text: str) -> None:
        pass

    def track(self, batches: Iterable[Item], count: int) -> Iterable[Item]:
        return untracked(batches, count)

    def step(self, progress: Progress) -> None:
        pass

    def epoch(self, row: dict[str, Any]) -> None:
        pass

    def say(self, line: str) -> None:
        pass
