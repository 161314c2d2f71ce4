"""What a recipe may leave open, but a run may not."""

from spequant.app.recipes.origins import weights_origin
from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.training import check_device


def check_ready(recipe: Recipe) -> None:
    """Check that `recipe` can be run here, before anything is loaded.

    Raises:
        ValueError: the device is not here; a new head for random weights; a float teacher with random weights; averages
            or frozen weights with a method that gives weights their ranges later.
    """
    check_device(recipe.train.device, "train.device")
    for setting in ("ema", "freeze_threshold") if recipe.method.weights_begin_float else ():
        if (value := getattr(recipe.train, setting)) is not None:
            kind = type(recipe.method).__qualname__.partition(".")[0]
            raise ValueError(
                f"train.{setting} is {value!r}; expected None: {kind} gives weights their ranges in the course of "
                "training"
            )
    network = recipe.network
    if network.new_head and network.random:
        raise ValueError(
            "network.new_head is True; expected False: random weights have a new head already; or weights, "
            f"--network.weights RUN or --network.pretrained. {weights_origin(recipe)}"
        )
    if any(settings.teacher is None for settings in recipe.method.fixed_teachers):
        random = "a new head" if network.new_head else "random weights"
        if network.new_head or network.random:
            kind = type(recipe.method).__qualname__.partition(".")[0]
            raise ValueError(
                f"method.teacher is None and the float network has {random}, which teach {kind} nothing; expected "
                "a float run or weights: --method.teacher RUN"
                f"{'' if network.new_head else ', or --network.weights RUN, which the student starts from as well'}"
            )
