"""Recipes: what a run is made of, by name, and carrying it out."""

from spequant.recipes.catalogue import RECIPES
from spequant.recipes.dry_run import dry_run
from spequant.recipes.folder import listing
from spequant.recipes.run import Quiet, Reporter, evaluate_run, load_run, run
from spequant.recipes.schema import Recipe

__all__ = ["RECIPES", "Quiet", "Recipe", "Reporter", "dry_run", "evaluate_run", "listing", "load_run", "run"]
