"""Time of the first training step, which compiles: with an empty cache and with a full one.

    python benchmarks/first_step.py          # ResNet-20, batch 128, bf16: float, Retrain, SPEQ
    python benchmarks/first_step.py --network bert6 --batch 8 --rows speq --dtype fp32

The options are those of `spequant bench train`; float is always measured. Each first step has a process of its own, and
each row a cache of its own, empty at first. Processor time counts that of the C++ compiler; on a shared machine it is
reliable, the time on the clock is not. The import of torch's compiler counts, making and calibrating the network not.
"""

import os
import resource
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import tyro
from rich.table import Table

from spequant.app.bench.train import FLOAT_ROW, STEPS, ready
from spequant.app.commands.bench import BenchTrain
from spequant.app.commands.screen import print_table
from spequant.app.recipes.training import device_named

ROWS = ("retrain", "speq")


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


def main(settings: BenchTrain) -> None:
    """Print a table of the rows."""
    settings = replace(settings, device=str(device_named(settings.device)))
    table = Table("row", "cache", "s", "processor, s", "ratio to float")
    of_float: dict[str, float] = {}
    for row in (FLOAT_ROW, *(settings.rows or ROWS)):
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("empty", "full"):
                seconds, processor = measured(row, settings, cache)
                ratio = processor / of_float.setdefault(kind, processor)
                print(f"{row}, {kind} cache: {seconds:.1f} s, {processor:.1f} s of the processor", flush=True)
                table.add_row(row, kind, f"{seconds:.1f}", f"{processor:.1f}", f"{ratio:.2f}")
    print_table(table)


if __name__ == "__main__":
    main(tyro.cli(BenchTrain, description=__doc__))
