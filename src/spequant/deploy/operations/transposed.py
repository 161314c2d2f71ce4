"""Transposed convolutions, as convolutions whose channels hold phases, and these phases put between the pixels.

    y[s q + r - padding] = sum over m of w[j] x[q - m],  where j dilation = s m + r

Phase r of stride s has the taps j of the kernel for which j dilation mod s = r, and reads m pixels before. So there is
one kind of layer on codes, which every engine has; transposed ones on integers hardly any has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product as combinations
from typing import Any

import torch
from torch import Tensor

from spequant.deploy.grids import Grid, act_grid, weight_grid
from spequant.deploy.operations.layer import After, FloatLayer, Weighted, float_parameters, layer_of, rescaled
from spequant.deploy.operations.operation import Lowering, Operation, Step
from spequant.deploy.operations.shaping import PixelShuffle
from spequant.deploy.operations.slicing import Slice
from spequant.deploy.operations.windows import joined


@dataclass(frozen=True)
class Phases:
    """Of a transposed convolution of inputs of `sizes` to results of `result`: strides are the phases, delays the most
    that each dimension reads before, first what is cut off before the result."""

    strides: tuple[int, ...]
    delays: tuple[int, ...]
    first: tuple[int, ...]
    sizes: tuple[int, ...]
    result: tuple[int, ...]

    @property
    def after(self) -> tuple[int, ...]:
        """Zeros behind the input that the last result needs."""
        ends = zip(self.first, self.result, self.strides, self.sizes, strict=True)
        return tuple(max(0, -(-(p + out) // s) - n) for p, out, s, n in ends)

    @property
    def positions(self) -> tuple[int, ...]:
        """Of the convolution's result."""
        return tuple(n + a for n, a in zip(self.sizes, self.after, strict=True))

    @property
    def window(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Stride, padding and dilation of the convolution."""
        ones = (1,) * len(self.strides)
        return ones, joined(self.delays, self.after), ones

    @property
    def count(self) -> int:
        return int(torch.tensor(self.strides).prod())


def _phases(step: Step) -> Phases:
    layer = layer_of(step)
    if layer.padding_mode != "zeros":
        raise ValueError(f"{step.name}: padding_mode {layer.padding_mode!r} has no integer form; expected zeros")
    reach = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
    delays = tuple((k - 1) * d // s for k, d, s in reach)
    return Phases(tuple(layer.stride), delays, tuple(layer.padding), step.inputs[0].shape[2:], step.shape[2:])


def as_convolution(weight: Tensor, layer: Any, phases: Phases) -> Tensor:
    """`weight` (inputs, outputs / groups, *kernel) of a transposed `layer` as that of the convolution: (outputs *
    phases, inputs / groups, *(delays + 1))."""
    groups = layer.groups
    apart = weight.reshape(groups, len(weight) // groups, *weight.shape[1:]).transpose(1, 2)  # group, output, input
    spatial = len(phases.strides)
    taps = tuple(m + 1 for m in phases.delays)
    out = weight.new_zeros(*apart.shape[:2], *phases.strides, apart.shape[2], *taps)
    for tap in combinations(*map(range, layer.kernel_size)):
        at = [j * d for j, d in zip(tap, layer.dilation, strict=True)]
        phase = [p % s for p, s in zip(at, phases.strides, strict=True)]
        delay = [p // s for p, s in zip(at, phases.strides, strict=True)]
        place = [m - shift for m, shift in zip(phases.delays, delay, strict=True)]
        out[(..., *phase, slice(None), *place)] = apart[(..., *tap)]
    return out.reshape(-1, apart.shape[2], *taps) if spatial else out


@dataclass(eq=False)
class Transposed(Operation):
    """A transposed convolution. In no program: `Weighted` or `FloatLayer` makes its phases."""

    WORD = "layer"

    @classmethod
    def reads(cls, step: Step) -> Any:
        return Weighted.reads(step)

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering, after: After | None = None) -> Operation | None:
        for source, quantizer in cls.reads(step):
            layer, phases = layer_of(step), _phases(step)
            inside, (codes, scale) = at.codes(source, act_grid(quantizer)), weight_grid(step.module)  # type: ignore[arg-type]
            scale, offset, bias = rescaled(layer, scale, after)
            weight = as_convolution(codes, layer, phases)
            scale, offset = (t.repeat_interleave(phases.count) for t in (scale, offset))
            shape = (step.shape[0], len(weight), *phases.positions)
            parameters = bias, None if after is None else after.gain
            window = (*phases.window, layer.groups)
            op = Weighted(step.name, (inside,), grid, shape, weight, scale, offset, *window, *parameters)
            return _woven(at.add(op), phases, at)
        return None

    @classmethod
    def floating(cls, step: Step, at: Lowering) -> Operation:
        layer, phases = layer_of(step), _phases(step)
        weight, bias = float_parameters(step)
        weight, bias = as_convolution(weight, layer, phases), bias.repeat_interleave(phases.count)
        shape = (step.shape[0], len(weight), *phases.positions)
        inputs = (at.value(step.inputs[0]),)
        op = FloatLayer(step.name, inputs, None, shape, weight, bias, *phases.window, layer.groups)
        return _woven(at.add(op), phases, at)


def _woven(op: Operation, phases: Phases, at: Lowering) -> Operation:
    """`op`, whose channels hold phases, with these between its pixels, and what is before and after the result cut
    off."""
    spatial = len(phases.strides)
    batch, channels = op.shape[0], op.shape[1] // phases.count
    if phases.count > 1:
        sizes = (n * s for n, s in zip(phases.positions, phases.strides, strict=True))
        op = _moved(op, PixelShuffle, (batch, channels, *sizes), at, factors=phases.strides)
    shape = (batch, channels, *phases.result)
    if op.shape == shape:
        return op
    stop = tuple(p + n for p, n in zip(phases.first, phases.result, strict=True))
    window = {"start": (0, *phases.first), "stop": (channels, *stop), "step": (1,) * (1 + spatial)}
    return _moved(op, Slice, shape, at, **window)


def _moved(op: Operation, kind: type[Operation], shape: Sequence[int], at: Lowering, **fields: Any) -> Operation:
    return at.add(kind(op.name, (op,), op.grid, tuple(shape), **fields))
