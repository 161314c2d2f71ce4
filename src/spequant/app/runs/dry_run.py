"""What a run would take: images, steps, memory and hours, from some steps of it; nothing is written."""

import resource
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from spequant.app.recipes.recipe import Recipe
from spequant.app.runs.assembly import assemble, start_processes
from spequant.layers import weight_bits
from spequant.processes import world
from spequant.train import train_step

WARM_UP = 3  # steps that compile and fill caches
TIMED = 10


@dataclass(frozen=True)
class Estimate:
    """What `dry_run` found."""

    samples: tuple[int, int, int]
    """to train on, held out, to test on: images; or windows of tokens, and questions"""
    epochs: int
    steps: int
    """optimizer steps in all"""
    processes: int
    parameters: int
    weight_bytes: int
    """at real bits"""
    seconds_first: float
    """of the first steps, which compile"""
    warm: int
    """how many these are"""
    timed: int
    """how many others"""
    step_seconds: float
    """median of the others"""
    peak_bytes: int
    """of the GPU's memory, or of this process on a CPU"""

    @property
    def hours(self) -> float:
        return (self.seconds_first + self.step_seconds * self.steps) / 3600

    def lines(self) -> list[str]:
        """In words, a line a fact."""
        return [
            "samples     {} to train, {} held out, {} to test".format(*self.samples),
            f"steps       {self.steps} in {self.epochs} epochs, on {self.processes} process(es)",
            f"network     {self.parameters} parameters, {self.weight_bytes / 1024:.1f} KiB at real bits",
            f"memory      {self.peak_bytes / 2**20:.0f} MiB at its peak",
            f"step        {self.step_seconds * 1000:.1f} ms, median of {self.timed}; before it {self.warm} in "
            f"{self.seconds_first:.1f} s",
            f"time        {self.hours:.2f} hours, measuring held-out images aside",
        ]


def dry_run(recipe: Recipe) -> Estimate:
    """Make everything that `recipe` asks for and time some steps of its training."""
    recipe.check_ready()
    assembly = assemble(recipe, start_processes(replace(recipe, train=replace(recipe.train, tracker=None)), Path()))
    state = assembly.state
    count = min(WARM_UP + TIMED, assembly.steps)
    warm = min(WARM_UP, count - 1)
    seconds = []
    state.wrapped.train()
    start = time.perf_counter()
    for batch in islice(assembly.field.batches(0, 0), count):
        sums = train_step(state, batch, assembly.accelerator, recipe.train.clip_norm, assembly.field.task)
        float(sums[0])  # waits for the device
        seconds.append(time.perf_counter() - start)  # with the batch's making, which decoding may dominate
        start = time.perf_counter()
    state.capture()  # as for a checkpoint, which may take more than a step does
    on_gpu = state.device.type == "cuda"
    timed = sorted(seconds[warm:])
    return Estimate(
        samples=assembly.field.sizes,
        epochs=recipe.train.epochs,
        steps=recipe.train.epochs * assembly.steps,
        processes=world(),
        parameters=sum(p.numel() for p in state.model.parameters()),
        weight_bytes=weight_bits(state.model) // 8,
        seconds_first=sum(seconds[:warm]),
        warm=warm,
        timed=len(timed),
        step_seconds=timed[len(timed) // 2],
        peak_bytes=torch.cuda.max_memory_allocated(state.device)
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
