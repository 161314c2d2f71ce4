"""A quantizer of your own: in a network, and in a recipe by its name.

python examples/own_quantizer.py

The quantizer is for weights, with bounds at a multiple of their mean magnitude (as in TWN, arXiv 1605.04711).
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spequant import Quantizer
from spequant.app.recipes import RECIPES
from spequant.app.recipes.choices import QUANTIZER
from spequant.app.runs import run
from spequant.functional import fake_quantize
from spequant.quantizers import QuantizerSettings


class MeanMagnitude(Quantizer):
    """Bounds at factor x mean|w|, from each weight at every forward."""

    stored = False  # no range is kept between forwards: nothing to calibrate
    weights_only = True

    @dataclass(frozen=True, kw_only=True)
    class Settings(QuantizerSettings):
        """A multiple of the mean magnitude."""

        factor: float = 2.0
        """of the mean magnitude, above 0"""

    def __init__(self, bits, *, factor=2.0, signed=None, shape=(), of_weight=True):
        super().__init__(bits, signed=signed, shape=shape, of_weight=of_weight)
        self.factor = factor

    def bounds(self, x):
        return self.bounds_at(self.factor * self.reduce(x.detach().abs(), torch.mean).reshape(self.shape))

    def quantized(self, x):
        """The usual forward and straight-through gradient; a paper's other ones go here."""
        low, high = self.span(x)
        return fake_quantize(x, low, high, self.levels)

    def config(self):
        """What makes this quantizer again, for the copies in the layers."""
        return {**super().config(), "factor": self.factor}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, help="to train on; all without it")
    parser.add_argument("--out", type=Path, default=Path("own-quantizer"))
    given = parser.parse_args()

    # A recipe names it as on the command line: spequant train RECIPE --quant.weight own_quantizer.py:MeanMagnitude
    weight = QUANTIZER.named(f"{__file__}:MeanMagnitude")(factor=2.5)
    floating, low_bit = RECIPES["digits-float"](), RECIPES["digits-w2a2-speq"]()
    floating, low_bit = (
        replace(
            recipe, data=replace(recipe.data, images=given.images), train=replace(recipe.train, epochs=given.epochs)
        )
        for recipe in (floating, low_bit)
    )
    network = replace(low_bit.network, weights=given.out / "float")
    low_bit = replace(low_bit, name="digits-own", network=network, quant=replace(low_bit.quant, weight=weight))
    before = run(floating, given.out / "float")["test_accuracy"]
    after = run(low_bit, given.out / "low-bit")["test_accuracy"]
    print(f"float {before:.1f} %, weights by MeanMagnitude at 2 bits {after:.1f} %")
