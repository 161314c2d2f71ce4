"""A run whose loss or weights are not finite: which layer failed first."""

import gc
from collections.abc import Callable

from spequant.app.runs.assembly import Assembly
from spequant.app.runs.reporter import Reporter
from spequant.app.runs.writer import Writer
from spequant.train import NotFinite, Snapshot, first_to_go

Assembled = Callable[[Snapshot | None], Assembly]
"""Makes everything that a run trains with, as it was at a snapshot, or at the start of the run."""


def diverged(assembled: Assembled, writer: Writer, reporter: Reporter, error: NotFinite) -> FloatingPointError:
    """Return the error that ends the run, and write its text to diverged.txt.

    It names the layers that failed first: training is repeated from the last checkpoint. If Ctrl-C ends that, it names
    only the step.

    Args:
        assembled: Of the run.
        writer: Of the run's folder.
        reporter: Is given one line.
        error: What training raised.
    """
    reason = error.message
    writer.diverged(reason)
    gc.collect()  # the run's state, which refers to itself, makes room for the next one
    try:
        snapshot, _ = writer.last_checkpoint()
        step = 0 if snapshot is None else snapshot.numbers["step"]
        reporter.say(f"{reason}. Training again from step {step} to find the layer; Ctrl-C leaves it at that")
        again = assembled(snapshot)
        reporter.phase("training again")
        reason = first_to_go(
            again.state,
            again.field.batches,
            error,
            steps=again.steps,
            accelerator=again.accelerator,
            clip_norm=again.recipe.train.clip_norm,
            task=again.field.task,
        )
        writer.diverged(reason)
    except KeyboardInterrupt:
        pass
    return FloatingPointError(reason)
