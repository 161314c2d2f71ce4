"""Where a run reports its progress."""

from typing import Any, Protocol

from spequant.train import Progress


class Reporter(Protocol):
    """Receives the progress of a run: each step, the row of each epoch, and single lines of text."""

    def step(self, progress: Progress) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def say(self, line: str) -> None: ...


class Quiet:
    """A reporter that shows nothing."""

    def step(self, progress: Progress) -> None:
        pass

    def epoch(self, row: dict[str, Any]) -> None:
        pass

    def say(self, line: str) -> None:
        pass
