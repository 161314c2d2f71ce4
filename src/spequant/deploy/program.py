"""A network as integer operations: what is computed, not by whom. Made in `lower.py`; run by `twin.py`; written by
`onnx_integer.py`.

Codes are whole numbers around zero: code c stands for c * step, so that zero is code 0 and needs no zero point.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Home:
    """The quantizer that a grid comes from, as it was trained: `levels` values over [low, high], fp32 numbers."""

    bits: int
    levels: int
    low: float
    high: float


@dataclass(frozen=True)
class Grid:
    """Codes low .. high, at most 256 of them; code c stands for c * step. `step` is an fp32 number.

    home: where it comes from. clamp: the values that clamps on the way to here leave, in float.
    """

    step: float
    low: int
    high: int
    home: Home | None = None
    clamp: tuple[float, float] = (-float("inf"), float("inf"))

    @property
    def signed(self) -> bool:
        """Of the quantizer: what a clamp leaves of its codes is stored as all the others, beside which it may stand."""
        return self.low < 0 if self.home is None else self.home.low < 0

    @property
    def zero(self) -> int:
        """What engines store for code 0, as uint8: 128 where all codes of the quantizer are int8, which processors
        prefer; otherwise the number of its codes below zero."""
        low, high = self.low, self.high
        if self.home is not None:
            low, high = (round(end / self.step) for end in (self.home.low, self.home.high))
        if low >= 0:
            return 0
        return 128 if low >= -128 and high <= 127 else -low

    @property
    def rate(self) -> float:
        """Codes to a unit, the fp32 number that fake quantization multiplies by; 1 / step but for rounding."""
        if self.home is None:
            return float(1 / torch.tensor(self.step, dtype=torch.float32))
        low, high = (torch.tensor(v, dtype=torch.float32) for v in (self.home.low, self.home.high))
        return float(torch.round((high - low) / self.step) / (high - low))

    def clamped(self, low: float, high: float) -> "Grid":
        """The grid of clamp(x, low, high): rounding and clamping to codes may change places, both being monotone."""
        clamp = (min(max(end, low), high) for end in self.clamp)
        first, last = self._nearest(low), self._nearest(high)
        return replace(self, low=first, high=last, clamp=tuple(clamp))

    def _nearest(self, value: float) -> int:
        code = torch.round(torch.tensor(value, dtype=torch.float32) / self.step)
        return int(code.clamp(self.low, self.high))


@dataclass(eq=False)
class Op:
    """One step: its inputs, and the grid of its result; `grid` None: the result is float.

    name: of the layer it comes from. shape: of the result for one sample, batch first.
    """

    name: str
    inputs: tuple["Op", ...]
    grid: Grid | None
    shape: tuple[int, ...]


@dataclass(eq=False)
class Input(Op):
    """What the network is given, float."""


@dataclass(eq=False)
class Quantize(Op):
    """Float to codes: clip(round(x * rate), low, high), ties to the even code."""


@dataclass(eq=False)
class Weighted(Op):
    """A convolution or linear layer on codes, with all that is linear after it (bias, batch norm):

    y[o] = scale[o] * input step * sum(weight[o] * codes) + offset[o]

    weight: int16, or int8 where it was made for int8 arithmetic, (outputs, inputs / groups, *kernel) or (outputs,
    inputs); scale, offset: float64 (outputs,); scale may be negative or zero.
    """

    weight: Tensor
    scale: Tensor
    offset: Tensor
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: Tensor | None = None  # the parameter that `offset` grows with, one to one

    @property
    def spatial(self) -> int:
        """Dimensions of the kernel; 0: a linear layer."""
        return self.weight.dim() - 2


@dataclass(eq=False)
class Add(Op):
    """The sum of two tensors of codes, each at its own step."""


@dataclass(eq=False)
class MaxPool(Op):
    """The largest code of each window; padding never wins."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()


@dataclass(eq=False)
class Move(Op):
    """Codes put elsewhere, unchanged: kind "flatten" (all but the batch), "concat" (over channels) or "amax" (the
    largest over all positions, `keep` or drop their axes)."""

    kind: str = "flatten"
    keep: bool = False


@dataclass(eq=False)
class Float(Op):
    """A float island: an operation that has no integer form, on float values.

    kind: a key of the tables in `twin.py` and `onnx_integer.py`. tensors: its constants.
    """

    kind: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()


@dataclass
class Program:
    """ops: in the order of computing, the first the input; output: the last."""

    ops: list[Op]
    output: Op

    @property
    def input(self) -> Op:
        return self.ops[0]

    def islands(self) -> list[str]:
        """What is computed in float, in words, beside the quantization of the input and the output's scale."""
        return [f"{op.name}: {op.kind}" for op in self.ops if isinstance(op, Float)]


def as_float(x: Tensor, grid: Grid | None) -> Tensor:
    """The values of codes; float values as they are."""
    return x if grid is None else x.float() * torch.tensor(grid.step, dtype=torch.float32)
