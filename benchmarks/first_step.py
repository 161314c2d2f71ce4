"""Time of the first training step, which compiles: with an empty cache and with a full one.

    python benchmarks/first_step.py          # ResNet-20, batch 128, bf16: float, Retrain, SPEQ
    python benchmarks/first_step.py --network bert6 --batch 8 --rows speq --dtype fp32

The options are those of `spequant bench train` that say what a step is, and rounds: how often each row starts with its
full cache, in turn, of which the median counts. Float is always measured. Each first step has a process of its own, and
each row a cache of its own, empty at first. Processor time counts that of the C++ compiler; on a shared machine it
varies less than the time on the clock. The import of torch's compiler counts, making and calibrating the network not.
"""

import os
import resource
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import tyro
from rich.table import Table

from spequant.app.bench.train import FLOAT_ROW, STEPS, ready
from spequant.app.commands.bench import BenchTrain
from spequant.app.commands.screen import print_table
from spequant.app.recipes.training import device_named

ROWS = ("retrain", "speq")
NOT_READ = ("steps", "at_once", "quick", "json")


def first_step(pipe: Connection, row: str, settings: BenchTrain, cache: str) -> None:
    """In a process of its own: send the seconds of the first step, on the clock and of the processor."""
    import torch

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    step, _ = ready(STEPS[row], settings)
    begun, before = time.perf_counter(), _processor_seconds()
    step()
    pipe.send((time.perf_counter() - begun, _processor_seconds() - before))


def _processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    usages = (resource.getrusage(kind) for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measured(row: str, settings: BenchTrain, cache: str) -> tuple[float, float]:
    """`first_step` in a new process."""
    spawn = get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=first_step, args=(there, row, settings, cache))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


@dataclass(frozen=True)
class FirstStep(BenchTrain):
    """Time first steps."""

    rounds: int = 3
    """starts of each row with a full cache"""


def main(settings: FirstStep) -> None:
    """Print a table of the rows."""
    settings = replace(settings, device=str(device_named(settings.device)))
    if settings.rounds < 1:
        raise SystemExit(f"--rounds is {settings.rounds}; expected 1 or more")
    for name in NOT_READ:
        if getattr(settings, name) != getattr(BenchTrain, name):
            raise SystemExit(f"--{name.replace('_', '-')} is of spequant bench train; a first step has no such option")
    rows = tuple(dict.fromkeys((FLOAT_ROW, *(settings.rows or ROWS))))
    with tempfile.TemporaryDirectory() as caches:

        def start(row: str, kind: str) -> tuple[float, float]:
            seconds, processor = measured(row, settings, str(Path(caches) / row))
            print(f"{row}, {kind} cache: {seconds:.1f} s, {processor:.1f} s of the processor", flush=True)
            return seconds, processor

        empty = {row: [start(row, "empty")] for row in rows}
        full: dict[str, list[tuple[float, float]]] = {row: [] for row in rows}
        for _ in range(settings.rounds):
            for row in rows:
                full[row].append(start(row, "full"))
    table = Table("row", "cache", "s", "processor, s", "ratio to float")
    for kind, starts in (("empty", empty), ("full", full)):
        for row in rows:
            seconds, processor, of_float = (
                median(start[column] for start in starts[which])
                for which, column in ((row, 0), (row, 1), (FLOAT_ROW, 1))
            )
            table.add_row(row, kind, f"{seconds:.1f}", f"{processor:.1f}", f"{processor / of_float:.2f}")
    print_table(table)


if __name__ == "__main__":
    main(tyro.cli(FirstStep, description=__doc__))
