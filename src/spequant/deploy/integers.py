"""The integers of a weighted layer: what int8 arithmetic needs of `Weighted`, the same for every engine.

An engine computes  code = clip(round(M[o] * (sum(weight[o] * input codes) + bias[o])), low, high)  with int8 weights,
an int32 bias, and one fp32 factor per output, M = input step * scale / output step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from spequant.deploy.grids import Grid

INT16_MAX, INT32_MAX = 2**15 - 1, 2**31 - 1
LARGEST_BIAS = 2**30  # of an int32, so that the sum stays one
PAIR = 2**15 - 1  # the largest int16
EXACT = 2**24  # below it, whole numbers are fp32 numbers


@dataclass(frozen=True)
class Integers:
    """weight: int8 as `Weighted.weight`; bias: int32 (outputs,); scale: fp32 (outputs,): of weight codes, so that the
    bias has the scale input step * scale. unit: a whole number of which all weights are multiples."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    unit: int = 1

    @property
    def exact_in_fp32(self) -> bool:
        """Whether sums of products with 8-bit codes and the bias are whole numbers that fp32 holds."""
        return self.bound < EXACT

    @cached_property
    def bound(self) -> int:
        """Of such sums with the bias."""
        return int((self._sizes * 255 + self.bias.to(torch.int64).abs()).max())

    @cached_property
    def _sizes(self) -> Tensor:
        """Sums of the weights' magnitudes, int64 (outputs,)."""
        return self.weight.to(torch.int16).abs_().flatten(1).sum(1, dtype=torch.int64)

    def sums(self, x: Tensor, product: Callable[[Tensor, Tensor], Tensor], largest: int) -> Tensor:
        """product(codes `x`, weights) + bias, fp32, rounded once. largest: magnitude of the codes. The products are
        added in fp32 where it holds them, in units of `unit`; float64 takes twice the memory of the weights."""
        exact = int(self._sizes.max()) // self.unit * max(1, largest) < EXACT
        dtype = torch.float32 if exact else torch.float64
        weight = self.weight.to(dtype)
        sums = product(x.to(dtype), weight.div_(self.unit) if self.unit > 1 else weight).double()
        bias = self.bias.double().view(-1, *[1] * (self.weight.dim() - 2))
        return (sums.mul_(self.unit) if self.unit > 1 else sums).add_(bias).float()

    @property
    def largest_weight(self) -> int:
        """Its magnitude."""
        return max(int(self.weight.max()), -int(self.weight.min()))

    def saturates(self, grid: Grid) -> bool:
        """Whether a sum of two products with stored codes of `grid` may pass 16 bits."""
        return 2 * largest_stored(grid) * self.largest_weight > PAIR


def largest_stored(grid: Grid) -> int:
    """Of the codes of `grid` as engines store them, uint8."""
    return max(1, grid.high + grid.zero)


def largest_sums(weight: Tensor, low: int, high: int) -> Tensor:
    """The largest magnitude of each output's sum of products of `weight`, whole numbers of (outputs, ...), with codes
    of low .. high: int64 (outputs,)."""
    flat = weight.flatten(1)
    above, below = (part.sum(1, dtype=torch.int64) for part in (flat.clamp_min(0), flat.clamp_max(0)))
    return torch.maximum(above * high + below * low, -(above * low + below * high))


def check_sum(name: str, largest: int) -> None:
    """ValueError: sums of the layer `name`, which reach `largest` in magnitude, do not fit an int32."""
    if largest > INT32_MAX:
        raise ValueError(
            f"{name}: its sums of products may reach {largest:,}, by its weights and its input's range; expected at "
            f"most {INT32_MAX:,}, an int32. Give it fewer bits or inputs; of export_mixed it may be float: "
            f"skip=[{name!r}]"
        )


def smallest_codes(weight: Tensor, scale: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(codes, fp32 scale per output): the smallest whole numbers that do, and scales above zero."""
    codes = weight.numpy().astype(np.int64)
    divisor = max(1, int(np.gcd.reduce(codes, axis=None)))
    scales = scale.numpy() * divisor
    codes = codes // divisor * np.sign(scales).astype(np.int64).reshape(-1, *[1] * (codes.ndim - 1))
    return codes, np.where(scales == 0, 1.0, np.abs(scales)).astype(np.float32)


def int8_form(name: str, weight: Tensor, scale: Tensor, offset: Tensor, grid: Grid) -> Integers:
    """int8 weights, int32 bias and fp32 scales of a layer on codes of `grid`. ValueError: its sums may pass an int32.

    - Few codes are multiplied up to +-127, which costs nothing and makes the bias' unit finer: at 2 bits that unit
      would be some per cents of an output code. Where input codes are large, only up to +-64: processors without VNNI
      add two products in 16 bits, and 2 * 255 * 64 is what fits; and no farther than sums of them and the bias fit an
      int32. Codes that are int8 already, of an export read back, stay.
    - A negative scale flips the codes; only where -128 would become 128 the scale stays negative.
    - A channel whose scale vanishes, or is so small that its bias would overflow: zero weights, and a scale at which
      the bias fills half of its int32.
    """
    codes = weight.flatten(1).to(torch.int16)
    largest = max(1, int(codes.max()), -int(codes.min()))
    sums = largest_sums(codes, grid.low, grid.high)
    factor = min(127, PAIR // (2 * largest_stored(grid))) // largest
    factor = (
        1 if weight.dtype == torch.int8 else max(1, min(factor, (INT32_MAX - LARGEST_BIAS) // max(1, int(sums.max()))))
    )
    step = torch.tensor(grid.step, dtype=torch.float32).double()
    flip = (scale < 0) & (codes.amin(1) * factor > -128)
    scale = torch.where(flip, -scale, scale) / factor
    scale = scale.float().double()  # as stored: the bias follows from it
    bias = offset / (step * scale)
    vanishing = ~(bias.abs() < LARGEST_BIAS)  # NaN, of 0 / 0, too
    for_bias = (offset.abs() / (LARGEST_BIAS // 2) / step).clamp_min(torch.finfo(torch.float32).tiny * 2**40)
    scale = torch.where(vanishing, for_bias, scale).float()
    bias = torch.where(vanishing, offset / (step * scale.double()), bias)
    bias, times = bias.round().to(torch.int32), torch.where(vanishing, 0, torch.where(flip, -factor, factor))
    check_sum(name, int((sums * times.abs() + bias.abs()).max()))
    codes = (codes * times.to(torch.int16)[:, None]).to(torch.int8)
    return Integers(codes.reshape(weight.shape), bias, scale, factor)
