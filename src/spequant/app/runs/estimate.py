"""What a run would take: samples, steps, memory and hours, measured on its first steps; and how it would export.
Nothing is written."""

import resource
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from spequant.app.recipes.readiness import check_ready
from spequant.app.recipes.recipe import Recipe
from spequant.app.runs.assembly import assemble
from spequant.app.runs.fields import make_field
from spequant.app.runs.reporter import Quiet, Reporter
from spequant.deploy import FORMATS, check_export
from spequant.deploy.formats import ProgramFormat
from spequant.layers import weight_bits
from spequant.processes import rank, world
from spequant.train import train_step

WARM_UP = 3  # steps that compile and fill caches
TIMED = 10


@dataclass(frozen=True)
class Estimate:
    """What a run would take."""

    samples: tuple[int, int, int]
    """numbers to train on, held out, and to test on: of images; or of windows of tokens (training) and questions"""
    epochs: int
    steps: int
    """optimizer steps of the whole run"""
    processes: int
    parameters: int
    weight_bytes: int
    """with each weight at its bits"""
    seconds_first: float
    """seconds of the first `warm` steps, which compile"""
    warm: int
    timed: int
    """number of steps after these"""
    step_seconds: float
    """median of the `timed` steps"""
    peak_bytes: int
    """peak of the GPU's memory, or on a CPU of this process"""
    exports: tuple[str, ...] = ()
    """for each way in which exports would turn out, the formats and what is refused or left float"""

    @property
    def hours(self) -> float:
        return (self.seconds_first + self.step_seconds * self.steps) / 3600

    def lines(self) -> list[str]:
        """Return one line of text per fact."""
        return [
            "samples     {} to train, {} held out, {} to test".format(*self.samples),
            f"steps       {self.steps} in {self.epochs} epochs, on {self.processes} process(es)",
            f"network     {self.parameters} parameters, {self.weight_bytes / 1024:.1f} KiB at real bits",
            f"memory      {self.peak_bytes / 2**20:.0f} MiB at its peak",
            f"step        {self.step_seconds * 1000:.1f} ms, median of {self.timed}; before it {self.warm} in "
            f"{self.seconds_first:.1f} s",
            f"time        {self.hours:.2f} hours, measuring held-out images aside",
            *(f"export      {line}" for line in self.exports),
        ]


def dry_run(recipe: Recipe, reporter: Reporter | None = None) -> Estimate:
    """Make everything that `recipe` needs, and time its first steps.

    Args:
        recipe: what would be trained.
        reporter: is told the phases; None: nobody is.

    Raises:
        ValueError: the recipe cannot be trained here, as in `run`.
    """
    check_ready(recipe)
    accelerator = replace(recipe.train, tracker=None).start(Path())
    reporter = reporter if reporter and rank() == 0 else Quiet()
    reporter.phase("loading data")
    field = make_field(recipe, recipe.train.device_of(accelerator))
    assembly = assemble(recipe, field, accelerator, phase=reporter.phase)
    state = assembly.state
    count = min(WARM_UP + TIMED, assembly.steps)
    warm = min(WARM_UP, count - 1)
    seconds = []
    reporter.phase(f"{'compiling, and ' * bool(recipe.train.compile)}timing {count} steps")
    state.wrapped.train()
    start = time.perf_counter()
    for batch in reporter.track(islice(assembly.field.batches(0, 0), count), count):
        sums = train_step(state, batch, assembly.accelerator, recipe.train.clip_norm, assembly.field.task)
        float(sums[0])  # waits for the device
        seconds.append(time.perf_counter() - start)  # with the time to make the batch, most of which may be decoding
        start = time.perf_counter()
    state.capture()  # as for a checkpoint, which may need more memory than a step
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
        exports=_exports(state.model, assembly.field.example) if recipe.quantized and rank() == 0 else (),
    )


def _exports(model: nn.Module, example: Tensor | None) -> tuple[str, ...]:
    """What `check_export` says of each format with integers throughout. example: None: inputs have names."""
    if example is None:
        return ("of inputs by name there are --to packed and --to mixed, with float parts",)
    formats: dict[str, list[str]] = {}
    for name, form in FORMATS.items():
        if isinstance(form, ProgramFormat):
            try:
                said = check_export(model, example, name).line
            except ModuleNotFoundError as error:
                said = str(error)
            formats.setdefault(said, []).append(f"--to {name}")
    return tuple(f"{', '.join(names)}: {said}" for said, names in formats.items())
