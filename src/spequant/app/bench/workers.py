"""Training steps in processes of their own, each of which has its own graphs and memory."""

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from spequant.app.bench.memory import peak_bytes
from spequant.train import keep_freed_memory

WARM_UP_STEPS = 3
"""steps that compile and fill caches"""

TimedStep = Callable[[], Any]
MakeStep = Callable[[], tuple[TimedStep, Callable[[], int]]]
"""returns (a training step, a function that gives the bytes of all tensors that exist between steps); picklable"""


class WorkerGroup:
    """Processes, mostly one, which run the same steps at the same time. The first is started at once; see `wait`.

    Args:
        name: of the step.
        make_step: makes the step in each process.
        device: where the step runs.
        threads: of the CPU, which are divided among the processes.
        copies: number of processes.

    Attributes:
        label: the name, with the number of processes where there are several.
        error: why the step does not run; None: it runs, or `wait` has not said so yet.
        peak: bytes of all processes together.
        graphs: number of graphs that torch.compile has made in one process.
        times: seconds per step, one entry per round.
    """

    def __init__(self, name: str, make_step: MakeStep, device: str, threads: int, copies: int = 1):
        self.name, self.label, self.times = name, name if copies == 1 else f"{name} x{copies}", list[float]()
        self.error, self.peak, self.graphs, self.copies = None, 0, 0, copies
        self.start = partial(Worker, make_step, device, max(1, threads // copies))
        self.workers = [self.start()]

    def wait(self) -> "WorkerGroup":
        """Wait until all processes are ready, or one says that the step does not run; return the group."""
        for number in range(self.copies):
            if self.error is None:  # one after the other: the first fills the cache of compiled kernels
                if number:
                    self.workers.append(self.start())
                self.error, peak, self.graphs = self.workers[number].hear()
                self.peak += peak
        return self

    def ask(self, steps: int) -> float:
        """Run `steps` steps; the mean seconds of one, without the first, in the slowest process.

        Raises:
            ChildProcessError: a process died.
        """
        for worker in self.workers:
            worker.ask(steps)
        answers = [worker.hear() for worker in self.workers]
        if reason := next((error for error, *_ in answers if error), None):
            raise ChildProcessError(f"row {self.label!r}: {reason}; leave it out with rows, or give fewer at_once")
        self.graphs = answers[0][2]
        return max(seconds for _, seconds, _ in answers)

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.close()


class Worker:
    """One process. It answers once when it is ready, and once after each `ask`."""

    def __init__(self, make_step: MakeStep, device: str, threads: int):
        spawn = get_context("spawn")  # a forked process would lack torch's threads
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(other, make_step, device, threads), daemon=True)
        self.process.start()
        other.close()

    def ask(self, steps: int) -> None:
        """Let the process run `steps` steps; `hear` waits for its answer."""
        with suppress(BrokenPipeError):  # `hear` reports it
            self.pipe.send(steps)

    def hear(self) -> tuple[str | None, Any, int]:
        """(what went wrong or None, bytes when it is ready or seconds per step later, number of graphs)."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            return "its process died", 0, 0

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(timeout=10)


def _work(pipe: Connection, make_step: MakeStep, device: str, threads: int) -> None:
    """In the process: get ready, then run as many steps as are asked for, until the pipe is closed."""
    torch.set_num_threads(threads)
    try:
        keep_freed_memory()  # as in a run
        step, fixed_bytes = make_step()
        for _ in range(WARM_UP_STEPS):
            step()
        pipe.send((None, fixed_bytes() + peak_bytes(step, torch.device(device)), _graphs()))
    except Exception as error:
        pipe.send((f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}", 0, 0))
        return
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            times = [seconds_of(step, device) for _ in range(pipe.recv())]
            pipe.send((None, statistics.fmean(times[1:] or [0.0]), _graphs()))


def _graphs() -> int:
    """The number of graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def seconds_of(step: TimedStep, device: str = "cpu") -> float:
    """The time that `step` takes on `device`, seconds."""
    begun = time.perf_counter()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
