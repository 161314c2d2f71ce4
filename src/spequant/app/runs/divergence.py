"""A run whose loss or weights are not finite: which layer went first, and where that is written."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from spequant.app.recipes.recipe import Recipe
from spequant.app.runs.assembly import assemble
from spequant.app.runs.folder import DIVERGED, last_checkpoint
from spequant.app.runs.reporter import Reporter
from spequant.files import write_whole
from spequant.processes import rank
from spequant.train import NotFinite, first_to_go

if TYPE_CHECKING:
    from accelerate import Accelerator


def diverged(
    recipe: Recipe, accelerator: "Accelerator", folder: Path, reporter: Reporter, error: NotFinite
) -> FloatingPointError:
    """The error that ends a run whose numbers are not finite; its text is also in diverged.txt.

    It names the layers that went first: training is repeated from the last checkpoint. Where Ctrl-C ends that, it names
    only the step.
    """
    reason = error.message
    _write_reason(folder, reason)
    gc.collect()  # the run's state, which refers to itself, makes room for the one to come
    try:
        snapshot, _ = last_checkpoint(recipe, folder)
        begin = 0 if snapshot is None else snapshot.numbers["step"]
        reporter.say(f"{reason}. Training again from step {begin} to find the layer; Ctrl-C leaves it at that")
        again = assemble(recipe, accelerator, snapshot)
        settings, task = recipe.train, again.field.task
        reason = first_to_go(
            again.state,
            again.field.batches,
            error,
            steps=again.steps,
            accelerator=accelerator,
            clip_norm=settings.clip_norm,
            task=task,
        )
        _write_reason(folder, reason)
    except KeyboardInterrupt:
        pass
    return FloatingPointError(reason)


def _write_reason(folder: Path, reason: str) -> None:
    if rank() == 0:
        write_whole(folder / DIVERGED, f"{reason}\n")
