"""Variants of a recipe: without a teacher, or with another one."""

from dataclasses import replace
from typing import Any

from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.recipe import Recipe
from spequant.methods import SPEQ, Distill, ExtendedSPEQ, MethodSettings, Retrain, SPEQDistill
from spequant.quantizers import LSQ

FLOAT_QUANTIZATION = Quantization(weight_bits=None, act_bits=None)
RETRAIN = Retrain.Settings()


def with_method(speq: Recipe, name: str, method: MethodSettings) -> Recipe:
    """Return the recipe with another method; `name` replaces "speq" in the recipe's name."""
    return replace(speq, name=speq.name.replace("-speq", f"-{name}"), method=method)


def retrain(speq: Recipe) -> Recipe:
    """Return the recipe without a teacher."""
    return with_method(speq, "retrain", RETRAIN)


def distill(speq: Recipe) -> Recipe:
    """Return the recipe with the float network as teacher, by KL at SPEQ's temperature and weight."""
    return with_method(speq, "distill", _distill(speq_of(speq)))


def speq_distill(speq: Recipe) -> Recipe:
    """Return the recipe with both teachers."""
    settings = speq_of(speq)
    return with_method(speq, "speq-distill", SPEQDistill.Settings(speq=settings, distill=_distill(settings)))


def beyond(speq: Recipe) -> Recipe:
    """Return the recipe with the settings that the study `beyond` chose (docs/results/beyond.md).

    It had six trials of 12 epochs on 5,120 images of CIFAR-10. The settings are LSQ, the float network as a second
    teacher, two teacher passes, T = 4, half the weight decay, and .93 of the learning rate.
    """
    train = replace(speq.train, lr=round(0.93 * speq.train.lr, 4), weight_decay=speq.train.weight_decay / 2)
    quant = replace(speq.quant, weight=LSQ.Settings(), act=LSQ.Settings())
    method = SPEQDistill.Settings(
        speq=SPEQ.Settings(temperature=4.0, passes=2), distill=Distill.Settings(temperature=4.0)
    )
    return replace(with_method(speq, "beyond", method), quant=quant, train=train)


def speq_of(recipe: Recipe) -> SPEQ.Settings:
    """Return the settings of SPEQ in a recipe's method.

    Raises:
        ValueError: the method has none.
    """
    method = recipe.method
    if isinstance(method, SPEQ.Settings):
        return method
    if isinstance(method, SPEQDistill.Settings | ExtendedSPEQ.Settings):
        return method.speq
    raise ValueError(f"recipe {recipe.name} has {type(method).__qualname__}; expected SPEQ.Settings")


def with_speq(recipe: Recipe, **settings: Any) -> Recipe:
    """Return the recipe with other settings of SPEQ."""
    speq = replace(speq_of(recipe), **settings)
    method = speq if isinstance(recipe.method, SPEQ.Settings) else replace(recipe.method, speq=speq)  # type: ignore[call-arg]
    return replace(recipe, method=method)


def extended(recipe: Recipe, **settings: Any) -> Recipe:
    """Return the recipe with additions to SPEQ, which are fields of `ExtendedSPEQ.Settings`."""
    method = recipe.method
    before = method if isinstance(method, ExtendedSPEQ.Settings) else ExtendedSPEQ.Settings(speq=speq_of(recipe))
    return replace(recipe, method=replace(before, **settings))


def _distill(speq: SPEQ.Settings) -> Distill.Settings:
    return Distill.Settings(temperature=speq.temperature, weight=speq.weight)
