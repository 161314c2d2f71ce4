"""What one recipe is made of another by: the same without a teacher, or with another one."""

from dataclasses import replace
from typing import Literal

from spequant.recipes.schema import MethodChoice, Quantization, Recipe

FLOAT = Quantization(weight_bits=None, act_bits=None)
RETRAIN = MethodChoice(name="retrain")


def retrain(speq: Recipe) -> Recipe:
    """The same without a teacher."""
    return replace(speq, name=speq.name.replace("-speq", "-retrain"), method=RETRAIN)


def taught(speq: Recipe, method: Literal["distill", "speq-distill"]) -> Recipe:
    """The same method settings with the float network as teacher, alone or beside SPEQ's."""
    return replace(speq, name=speq.name.replace("-speq", f"-{method}"), method=replace(speq.method, name=method))
