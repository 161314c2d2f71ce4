"""A recipe carried out in a folder: trained, resumed, measured, saved."""

from pathlib import Path
from typing import Any

from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.serial import from_json
from spequant.app.runs.assembly import start_processes
from spequant.app.runs.divergence import diverged
from spequant.app.runs.folder import RECIPE, RESULT, check_same_recipe, held, read_result
from spequant.app.runs.reporter import Quiet, Reporter
from spequant.app.runs.session import run_session
from spequant.processes import rank
from spequant.train import NotFinite


def run(recipe: Recipe, folder: Path, reporter: Reporter | None = None, *, resume: bool = False) -> dict[str, Any]:
    """Train as `recipe` says; the result, also in `folder`/result.json. The test set is read once, at the end.

    resume: go on from the last checkpoint in `folder`, or start where there is none. The weights become those of a run
      that was never interrupted. Of a finished run the result is given back.

    FloatingPointError: the loss was not finite; the steps since the last checkpoint were trained again to name epoch,
    step and layers, unless SIGINT ended that. The reason is in `folder`/diverged.txt, too.
    FileExistsError: `folder` holds a run, finished or (without `resume`) not. OSError: it cannot be written to, or is
    in use. ValueError: what it holds is damaged or of another recipe. Interrupted: stopped by SIGINT or SIGTERM.
    """
    recipe.check_ready()
    if resume and (folder / RESULT).exists():
        check_same_recipe(from_json((folder / RECIPE).read_text()), recipe, folder)
        return read_result(folder)
    accelerator = start_processes(recipe, folder)
    reporter = reporter if reporter and rank() == 0 else Quiet()
    with held(folder, resume):
        try:
            return run_session(recipe, accelerator, folder, reporter, resume)
        except NotFinite as error:
            wrong = error.with_traceback(None)  # its frames hold the network and the optimizer
        raise diverged(recipe, accelerator, folder, reporter, wrong)
