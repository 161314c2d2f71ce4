"""Recipes: what a run is made of. By name, in files, on a command line; nothing here trains."""

from spequant.app.recipes.catalogue import RECIPES
from spequant.app.recipes.command_line import recipe_named
from spequant.app.recipes.recipe import Network, Recipe
from spequant.app.recipes.serial import from_json, to_json

__all__ = ["RECIPES", "Network", "Recipe", "from_json", "recipe_named", "to_json"]
