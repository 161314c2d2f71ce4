"""Recipes: what a run is made of, by name, carrying it out, and what its result is turned into."""

from spequant.app.recipes.catalogue import RECIPES
from spequant.app.recipes.deploy import export_source
from spequant.app.recipes.dry_run import dry_run
from spequant.app.recipes.evaluation import evaluate_source
from spequant.app.recipes.folder import listing
from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.run import Quiet, Reporter, run
from spequant.app.recipes.sources import load_run, open_source

__all__ = [
    "RECIPES",
    "Quiet",
    "Recipe",
    "Reporter",
    "dry_run",
    "evaluate_source",
    "export_source",
    "listing",
    "load_run",
    "open_source",
    "run",
]
