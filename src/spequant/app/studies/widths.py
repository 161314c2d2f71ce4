"""table1 and any-precision: a trained network at widths that it was not trained at."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

from torch import nn

from spequant.app.recipes import Recipe
from spequant.app.recipes.training import device_named
from spequant.app.runs.fields import Field, make_field
from spequant.calibration.batch_norm import reestimate_batch_norm
from spequant.layers import weight_quantizers
from spequant.policies import LowBit, precision
from spequant.preparation.placement import unprepare
from spequant.quantizers.base import level_tensor


@contextmanager
def weights_at(model: nn.Module, bits: int, trained: int) -> Iterator[None]:
    """Inside, weights that were trained at `trained` bits have `bits` bits within the same bounds."""
    quantizers = [q for q in weight_quantizers(model).values() if q.bits == trained]
    try:
        for q in quantizers:
            q.levels = level_tensor(q.levels_at(bits), q.home_levels)
        yield
    finally:
        for q in quantizers:
            q.levels = q.home_levels


def every_pair(recipe: Recipe, model: nn.Module, widths: Sequence[int]) -> dict[tuple[int, int], dict[str, float]]:
    """Test accuracy of a trained network at every pair of weight and activation widths.

    Args:
        recipe: of the run, with low-bit weights and activations.
        model: its network.
        widths: bits of both.

    Returns:
        {(weight bits, activation bits): accuracies, %}: "bounds held", and "refitted", where ranges and batch norm are
        calibrated again for the same weights.

    Raises:
        ValueError: weights or activations of the recipe are float.
    """
    field, plain = make_field(recipe, device_named(recipe.train.device)), unprepare(model)
    trained, act_bits = recipe.quant.weight_bits, recipe.quant.act_bits
    if trained is None or act_bits is None:
        raise ValueError(f"recipe is {recipe.name!r}; expected one with low-bit weights and activations")
    accuracies = {}
    for weight, act in product(widths, widths):
        with weights_at(model, weight, trained), precision(model, LowBit(act, act_bits)):
            kept_bounds = _accuracy(field, model)
        again = replace(recipe.quant, weight_bits=weight, act_bits=act).calibrated(plain, field.calibration())
        reestimate_batch_norm(again, field.statistics())
        accuracies[weight, act] = {"bounds held": kept_bounds, "refitted": _accuracy(field, again)}
    return accuracies


def at_activation_widths(recipe: Recipe, model: nn.Module, widths: Sequence[int]) -> dict[int, float]:
    """{bits: test accuracy, %} of a trained network with its low-bit activations at each of `widths`, bounds held."""
    field, accuracies = make_field(recipe, device_named(recipe.train.device)), {}
    for bits in widths:
        with precision(model, LowBit(bits, recipe.quant.act_bits)):
            accuracies[bits] = _accuracy(field, model)
    return accuracies


def _accuracy(field: Field, model: nn.Module) -> float:
    return next(iter(field.measure(model).values()))
