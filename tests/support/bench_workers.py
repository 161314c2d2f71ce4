"""Workers of `bench train` that answer with known times, in place of processes."""

from typing import Any, ClassVar

from spequant.app.bench import workers
from spequant.app.bench.train import STEPS


class Worker:
    """In place of a process. `seconds`: of a step, by row, call after call, the last one for all further calls; the
    first is the row's peak, MiB; a text in their place says what went wrong."""

    seconds: ClassVar[dict[str, list[Any]]]
    asked: ClassVar[list[tuple[str, int, int]]]

    def __init__(self, make_step: Any, device: str, threads: int):
        self.name = next(name for name, kind in STEPS.items() if kind is make_step.args[0])
        self.answers, self.threads, self.calls, self.open = self.seconds[self.name], threads, 0, True

    def ask(self, steps: int) -> None:
        self.asked.append((self.name, steps, self.threads))

    def hear(self) -> tuple[str | None, Any, int]:
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        if isinstance(answer, str):
            return answer, 0, 0
        return None, 2**20 * answer if self.calls == 1 else answer, 1

    def close(self) -> None:
        self.open = False


def answering(monkeypatch: Any, seconds: dict[str, list[Any]]) -> type[Worker]:
    """Put `Worker` in place of processes, with these answers by row."""
    monkeypatch.setattr(workers, "Worker", Worker)
    monkeypatch.setattr(Worker, "seconds", seconds, raising=False)
    monkeypatch.setattr(Worker, "asked", [], raising=False)
    return Worker
