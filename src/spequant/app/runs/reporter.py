"""What is shown of a run as it goes."""

from typing import Any, Protocol

from spequant.train import Progress


class Reporter(Protocol):
    """Told of a run as it goes."""

    def step(self, progress: Progress) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def say(self, line: str) -> None: ...


class Quiet:
    """A reporter that says nothing."""

    def step(self, progress: Progress) -> None:
        pass

    def epoch(self, row: dict[str, Any]) -> None:
        pass

    def say(self, line: str) -> None:
        pass
