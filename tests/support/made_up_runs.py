"""Runs that nothing trained: folders as a run leaves them, with figures that a test chooses; and what stands in for
`spequant.app.runs.run` and for runs in processes of their own, so that a study is carried out in no time."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from spequant.app.recipes import Recipe
from spequant.app.recipes.serial import to_json
from spequant.app.runs.folder import DIVERGED_FILE, ENVIRONMENT, METRICS, RECIPE, RESULT
from spequant.app.studies.arms import recipe_digest
from spequant.app.studies.side_by_side import Job


def written(folder: Path, recipe: Recipe, *commits: str) -> Path:
    """A run's folder, as far as a page reads it; one start a commit."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = [{"device": "cpu", "commit": commit, "python": "3", "torch": "2"} for commit in commits or ("abc",)]
    (folder / ENVIRONMENT).write_text(json.dumps(starts))
    (folder / RECIPE).write_text(to_json(recipe))
    (folder / METRICS).write_text("{}")
    return folder


def finished(folder: Path, recipe: Recipe, **figures: float) -> dict:
    """The same with a result, which is given back."""
    result = {"recipe": recipe.name, "seed": recipe.train.seed, "seconds": 2.0, **figures}
    (written(folder, recipe) / RESULT).write_text(json.dumps(result))
    return result


class Run:
    """Called as `spequant.app.runs.run`. accuracy: of a recipe, test and held out alike; not finite: it diverges;
    None: one that follows from all that is trained, so that equal runs have equal ones, and others others. trained: the
    folders of all calls, in their order."""

    def __init__(self, accuracy: Callable[[Recipe], float] | None = None):
        self.accuracy = accuracy
        self.trained: list[Path] = []

    def __call__(self, recipe: Recipe, folder: Path, reporter: object = None, *, resume: bool = False) -> dict:
        self.trained.append(folder)
        found = drawn(recipe_digest(recipe, folder.parent)) if self.accuracy is None else self.accuracy(recipe)
        if not math.isfinite(found):
            (written(folder, recipe) / DIVERGED_FILE).write_text("the loss is not finite\n")
            raise FloatingPointError("the loss is not finite")
        held = {"held_out_accuracy": found} if recipe.data.held_out else {}
        return finished(folder, recipe, test_accuracy=found, **held, weight_bytes=1024.0)


def drawn(text: str) -> float:
    """An accuracy."""
    return 50 + int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % 4000 / 100


def in_this_process(jobs: Sequence[Job], at_once: int) -> list[int]:
    """In place of `side_by_side`: the very same commands, one after another, here; the exit status of each."""
    from spequant.app.cli import main

    codes = []
    for job in jobs:
        try:
            main(job.arguments)
            codes.append(0)
        except SystemExit as error:
            print(error)
            codes.append(1)
    return codes
