"""What one recipe is made of another by: the same without a teacher, or with another one."""

from dataclasses import replace
from typing import Literal

from spequant.app.recipes.schema import MethodChoice, Quantization, Recipe

FLOAT = Quantization(weight_bits=None, act_bits=None)
RETRAIN = MethodChoice(name="retrain")


def retrain(speq: Recipe) -> Recipe:
    """The same without a teacher."""
    return replace(speq, name=speq.name.replace("-speq", "-retrain"), method=RETRAIN)


def taught(speq: Recipe, method: Literal["distill", "speq-distill"]) -> Recipe:
    """The same method settings with the float network as teacher, alone or beside SPEQ's."""
    return replace(speq, name=speq.name.replace("-speq", f"-{method}"), method=replace(speq.method, name=method))


def beyond(speq: Recipe) -> Recipe:
    """What the study `beyond` found on 5,120 images of CIFAR-10, in six trials of 12 epochs: LSQ, the float network as
    a second teacher, two teacher passes, T = 4, half the weight decay, .93 of the rate. docs/results/beyond.md."""
    train = replace(speq.train, lr=round(0.93 * speq.train.lr, 4), weight_decay=speq.train.weight_decay / 2)
    return replace(
        speq,
        name=speq.name.replace("-speq", "-beyond"),
        quant=replace(speq.quant, weight="lsq", act="lsq"),
        method=MethodChoice("speq-distill", temperature=4.0, passes=2),
        train=train,
    )
