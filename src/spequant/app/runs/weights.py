"""The float network of a recipe, with the weights that it starts from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from spequant import models
from spequant.app.recipes.origins import weights_origin
from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.recipe import Network, Recipe
from spequant.app.recipes.serial import from_json
from spequant.app.runs.folder import RECIPE, run_first, weight_file
from spequant.data import ImageSet
from spequant.models.weights import OtherHead
from spequant.preparation.placement import unprepare


def build_network(choice: Network, data: ImageSet) -> nn.Module:
    """Return the float network for `data`, with the weights that the recipe names.

    A low-bit run gives its weights before rounding.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights are of another network, or of other classes.
    """
    shape = data.images.shape
    model = models.make_network(
        choice.name,
        classes=data.classes,
        in_channels=shape[1],
        size=shape[-1],
        pretrained=choice.pretrained,
        new_head=choice.new_head,
    )
    if choice.weights is not None:
        low_bit = _low_bit(choice.weights)
        whole = model if low_bit is None else low_bit.build(model)
        try:
            models.load_weights(whole, weight_file(choice.weights), new_head=choice.new_head)
        except OtherHead as error:
            raise ValueError(
                f"{error}. The data have {data.classes} classes; expected network.weights of one for as many, or "
                "--network.new-head for a last layer of its own"
            ) from error
        model = model if low_bit is None else unprepare(whole)
    return model


@contextmanager
def origin_named(recipe: Recipe) -> Iterator[None]:
    """Say where float weights come from in the error for a file that does not exist."""
    try:
        yield
    except FileNotFoundError as error:
        if recipe.network.weights is not None and run_first(recipe.network.weights):
            raise  # it says which command makes the run
        raise FileNotFoundError(f"{error}. {weights_origin(recipe)}") from error


def load_teacher(network: nn.Module, weights: Path) -> None:
    """Load float weights, from a file or the folder of a run, into `network`.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights are of another network, or of other classes.
    """
    try:
        models.load_weights(network, weight_file(weights))
    except OtherHead as error:
        raise ValueError(f"{error}. It is method.teacher; expected one for the classes of the data") from error


def _low_bit(weights: Path) -> Quantization | None:
    """Return how the run in the folder `weights` was quantized, or None for a float run or a file."""
    if not (weights / RECIPE).is_file():
        return None
    recipe = from_json((weights / RECIPE).read_text())
    return recipe.quant if recipe.quantized else None
