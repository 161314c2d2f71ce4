"""Where a recipe's float weights come from: its float recipe trains them; only --network.pretrained fetches any."""

from spequant.app.recipes.catalogue import RECIPES
from spequant.app.recipes.recipe import Recipe
from spequant.models.named import BUILDERS, TORCHVISION_TWINS


def float_recipe(recipe: Recipe) -> Recipe | None:
    """Return the recipe that trains the float network of `recipe` from random weights; None: none in the catalogue.

    It is the one of the same data and as many images, if there is one, else the first of the same network.
    """
    floats = [
        one
        for one in (make() for make in RECIPES.values())
        if one.network.name == recipe.network.name
        and not one.quantized
        and one.network.random
        and not one.network.new_head
    ]
    like = [r for r in floats if (type(r.data), r.data.images) == (type(recipe.data), recipe.data.images)]
    return next(iter(like or floats), None)


def weights_origin(recipe: Recipe) -> str:
    """Return a sentence on where the float weights of `recipe` come from."""
    network = recipe.network.name
    if network not in BUILDERS or network in TORCHVISION_TWINS:
        return "--network.pretrained fetches published weights, where there are any"
    floating = float_recipe(recipe)
    makes = (
        ""
        if floating is None
        else f"`spequant train {floating.name}` makes them (--dry-run says how long that takes), or "
    )
    return (
        f"No weights of {network} are fetched: {makes}give the state dict of a checkpoint of the same layers "
        "(docs/images.md, Float weights)"
    )
