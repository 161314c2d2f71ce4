"""A recipe carried out in a folder: trained, resumed, measured, saved."""

from functools import partial
from pathlib import Path
from typing import Any

from spequant.app.recipes.readiness import check_ready
from spequant.app.recipes.recipe import Recipe
from spequant.app.runs.assembly import assemble
from spequant.app.runs.divergence import Assembled, diverged
from spequant.app.runs.fields import make_field
from spequant.app.runs.reporter import Quiet, Reporter
from spequant.app.runs.session import Session
from spequant.app.runs.writer import Writer, opened
from spequant.processes import rank
from spequant.train import NotFinite


def run(recipe: Recipe, folder: Path, reporter: Reporter | None = None, *, resume: bool = False) -> dict[str, Any]:
    """Train as `recipe` says, and measure. The test set is read once, at the end.

    Args:
        recipe: What to train.
        folder: Where the run is written; see `folder.py`.
        reporter: Is given progress; default: nobody is.
        resume: Go on from the last checkpoint in `folder`, or start if there is none. The weights become those of a run
            that was never interrupted. If the run is finished, only its result is returned.

    Returns:
        The result, which is also in `folder`/result.json.

    Raises:
        FloatingPointError: The loss was not finite. The steps since the last checkpoint were trained again to find
            epoch, step and layers, unless SIGINT ended that. The reason is also in `folder`/diverged.txt.
        FileExistsError: `folder` holds a finished run, or an unfinished one and `resume` is false.
        OSError: `folder` cannot be written to, or another run uses it.
        ValueError: `folder` holds a damaged run, or one of another recipe; or the recipe cannot be trained here.
        Interrupted: SIGINT or SIGTERM stopped the run, after a checkpoint.
    """
    check_ready(recipe)
    accelerator = recipe.train.start(folder)
    device = recipe.train.device_of(accelerator)
    reporter = reporter if reporter and rank() == 0 else Quiet()
    with opened(recipe, folder, resume) as writer:
        if writer.result is not None:
            return writer.result
        reporter.phase("loading data")
        assembled = partial(assemble, recipe, make_field(recipe, device), accelerator, phase=reporter.phase)
        try:
            return _train(assembled, writer, reporter, resume)
        except NotFinite as error:
            failure = error.with_traceback(None)  # its frames hold network and optimizer
        raise diverged(assembled, writer, reporter, failure)


def _train(assembled: Assembled, writer: Writer, reporter: Reporter, resume: bool) -> dict[str, Any]:
    snapshot, facts = writer.last_checkpoint() if resume else (None, {})
    return Session(assembled(snapshot), writer, reporter, facts).train(snapshot)
