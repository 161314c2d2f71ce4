"""Everything that a recipe trains with, on this machine."""

from pathlib import Path

from spequant.app.recipes import Recipe
from spequant.app.runs.assembly import Assembly, assemble
from spequant.app.runs.fields import make_field


def assembled(recipe: Recipe, folder: Path) -> Assembly:
    accelerator = recipe.train.start(folder)
    return assemble(recipe, make_field(recipe, recipe.train.device_of(accelerator)), accelerator)
