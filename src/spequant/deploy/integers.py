"""The integers of a weighted layer: what int8 arithmetic needs of `Weighted`, the same for every engine.

An engine computes  code = clip(round(M[o] * (sum(weight[o] * input codes) + bias[o])), low, high)  with int8 weights,
an int32 bias, and one fp32 factor an output, M = input step * scale / output step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spequant.deploy.program import Op, Program, Weighted

SUM = 2**31 - 1  # the largest int32
LARGEST_BIAS = 2**30  # of an int32, so that the sum stays one
PAIR = 2**15 - 1  # the largest int16


@dataclass(frozen=True)
class Integers:
    """weight: int8 as `Weighted.weight`; bias: int32 (outputs,); scale: fp32 (outputs,): of weight codes, so that the
    bias has the scale input step * scale."""

    weight: Tensor
    bias: Tensor
    scale: Tensor

    @property
    def exact_in_fp32(self) -> bool:
        """Whether sums of products with 8-bit codes and the bias are whole numbers that fp32 holds."""
        return self.bound < 2**24

    @property
    def bound(self) -> int:
        sums = self.weight.to(torch.int64).abs().flatten(1).sum(1) * 255
        return int((sums + self.bias.to(torch.int64).abs()).max())


def saturates(op: Weighted) -> bool:
    """Whether a sum of two products may pass 16 bits, which processors without VNNI or dot products clip it to."""
    return 2 * largest_stored(op) * int(integers(op).weight.to(torch.int32).abs().max()) > PAIR


def saturating(program: Program) -> list[str]:
    """Names of the layers that `saturates` holds for, each once."""
    found = [op.name for op in program.ops if isinstance(op, Weighted) and saturates(op)]
    return list(dict.fromkeys(found))


def largest_stored(op: Op) -> int:
    """Of its input codes as engines store them, uint8."""
    grid = op.inputs[0].grid
    assert grid is not None
    return max(1, grid.high + grid.zero)


def input_step(op: Op) -> Tensor:
    grid = op.inputs[0].grid
    assert grid is not None
    return torch.tensor(grid.step, dtype=torch.float32)


def largest_sums(weight: Tensor, low: int, high: int) -> Tensor:
    """The largest magnitude of each output's sum of products of `weight`, whole numbers of (outputs, ...), with codes
    of low .. high: int64 (outputs,)."""
    flat = weight.flatten(1).to(torch.int64)
    above, below = flat.clamp_min(0).sum(1), flat.clamp_max(0).sum(1)
    return torch.maximum(above * high + below * low, -(above * low + below * high))


def check_sum(name: str, largest: int) -> None:
    """ValueError: sums of the layer `name`, which reach `largest` in magnitude, do not fit an int32."""
    if largest > SUM:
        raise ValueError(
            f"{name}: its sums of products may reach {largest:,}, by its weights and its input's range; expected at "
            f"most {SUM:,}, an int32. Give it fewer bits or inputs; of export_mixed it may be float: skip=[{name!r}]"
        )


def integers(op: Weighted) -> Integers:
    """int8 weights, int32 bias and fp32 scales of `op`. ValueError: its sums may pass an int32.

    - Few codes are multiplied up to +-127, which costs nothing and makes the bias' unit finer: at 2 bits that unit
      would be some per cents of an output code. Where input codes are large, up to +-64 alone: processors without VNNI
      add two products in 16 bits, and 2 * 255 * 64 is what fits; and no farther than sums of them fit an int32 beside
      the bias. Codes that are int8 already, of an export read back, stay.
    - A negative scale flips the codes; only where -128 would become 128 the scale stays negative.
    - A channel whose scale vanishes, or is so small that its bias would overflow: zero weights, and a scale at which
      the bias fills half of its int32.
    """
    codes = op.weight.to(torch.int32)
    largest = int(codes.abs().max().clamp_min(1))
    grid = op.inputs[0].grid
    assert grid is not None
    sums = max(1, int(largest_sums(codes, grid.low, grid.high).max()))
    factor = min(127, PAIR // (2 * largest_stored(op))) // largest
    factor = 1 if op.weight.dtype == torch.int8 else max(1, min(factor, (SUM - LARGEST_BIAS) // sums))
    step = input_step(op).double()
    flat = codes.flatten(1) * factor
    flip = (op.scale < 0) & (flat.amin(1) > -128)
    flat = torch.where(flip[:, None], -flat, flat)
    scale = torch.where(flip, -op.scale, op.scale) / factor
    scale = scale.float().double()  # as stored: the bias follows from it
    bias = op.offset / (step * scale)
    vanishing = ~(bias.abs() < LARGEST_BIAS)  # NaN, of 0 / 0, too
    alone = (op.offset.abs() / (LARGEST_BIAS // 2) / step).clamp_min(torch.finfo(torch.float32).tiny * 2**40)
    scale = torch.where(vanishing, alone, scale).float()
    bias = torch.where(vanishing, op.offset / (step * scale.double()), bias)
    flat, bias = torch.where(vanishing[:, None], 0, flat), bias.round().to(torch.int32)
    check_sum(op.name, int((largest_sums(flat, grid.low, grid.high) + bias.abs()).max()))
    return Integers(flat.reshape(op.weight.shape).to(torch.int8), bias, scale)
