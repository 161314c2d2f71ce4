"""Recipes: what a run is made of, by name, carrying it out, and what its result is turned into."""

from spequant.recipes.catalogue import RECIPES
from spequant.recipes.deploy import export_source
from spequant.recipes.dry_run import dry_run
from spequant.recipes.evaluation import evaluate_source
from spequant.recipes.folder import listing
from spequant.recipes.run import Quiet, Reporter, run
from spequant.recipes.schema import Recipe
from spequant.recipes.sources import load_run, open_source

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
