"""Sizes of images multiplied or divided: to the nearest pixel, by means, or in straight lines between pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.deploy.grids import Grid
from spequant.deploy.operations.layer import FloatLayer, Weighted
from spequant.deploy.operations.moving import repeated
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step
from spequant.deploy.operations.positions import Adaptive, AvgPool
from spequant.deploy.operations.shaping import PixelShuffle
from spequant.deploy.operations.slicing import Pad, Range, sliced
from spequant.preparation.between import NEAREST

LINES = ("linear", "bilinear", "trilinear")


def _resized(
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> dict[str, Any]:
    if mode not in (*NEAREST, *LINES, "area") or antialias:
        raise ValueError(
            f"resizing by {mode!r}{' with antialias' * antialias} has no integer form here; expected nearest, area or "
            "bilinear"
        )
    return {"mode": mode, "corners": bool(align_corners)}


@dataclass(eq=False)
class Resize(Operation):
    """Resizing. In no program: repetition, slices, average pooling, or `Between`."""

    WORD = "resize"
    MODULES: ClassVar[dict[type, Read]] = {nn.Upsample: lambda m: _resized(mode=m.mode, align_corners=m.align_corners)}
    FUNCTIONS: ClassVar[dict[Any, Read]] = {F.interpolate: _resized}

    @classmethod
    def settled(cls, step: Step) -> Step:
        source, mode = step.inputs[0], step.attributes["mode"]
        pairs = list(zip(source.shape[2:], step.shape[2:], strict=True))
        if source.shape == step.shape:
            return source
        if mode == "area":
            return Adaptive.settled(Step(step.name, Adaptive, (source,), step.shape, {"kind": AvgPool}))
        if mode in NEAREST and not any(small % large for small, large in pairs):
            ranges: list[Range] = [(0, n, 1) for n in source.shape[:2]]
            for small, large in pairs:
                stride = small // large
                ranges.append((stride // 2 if mode == "nearest-exact" else 0, small, stride))
            return sliced(source, ranges, step.shape, step.name)
        if mode in NEAREST or all(small == 1 for small, _ in pairs):
            return repeated(source, step.shape, step.name)
        return _in_lines(step, source, pairs)


def _in_lines(step: Step, source: Step, pairs: list[tuple[int, int]]) -> Step:
    if step.attributes["corners"]:
        raise ValueError("resizing with align_corners=True has no integer form; expected align_corners=False")
    if all(small == 2 * large for small, large in pairs):  # half-way between two
        window = {"kernel": (2,) * len(pairs), "stride": (2,) * len(pairs), "padding": (0,) * len(pairs)}
        return Step(step.name, AvgPool, (source,), step.shape, {**window, "counts_padding": True})
    factors = tuple(large // small for small, large in pairs)
    if any(large % small for small, large in pairs) or int(_weights(factors)[0].max()) > 127:
        raise ValueError(
            f"resizing {source.shape[2:]} to {step.shape[2:]} in lines has no integer form; expected half the size, or "
            "2 to 7 times the size: several steps in place of one"
        )
    return Step(step.name, Lines, (source,), step.shape, {"factors": factors})


def _line(factor: int) -> tuple[Tensor, int]:
    """(weights, divisor): what the `factor` numbers in place of one have of those before, at and behind its place,
    whole numbers (factor, 3)."""
    weights = torch.zeros(factor, 3, dtype=torch.int64)
    for phase in range(factor):
        off = 2 * phase + 1 - factor  # of the place, in halves of the new distance
        weights[phase, 1] = 2 * factor - abs(off)
        weights[phase, 1 + (off > 0) - (off < 0)] += abs(off)
    common = gcd(*weights.flatten().tolist())
    return weights // common, 2 * factor // common


def _weights(factors: Sequence[int]) -> tuple[Tensor, int]:
    """(weights, divisor) of all dimensions together: (phases, 3, 3 ...)."""
    out, divisor = torch.ones((), dtype=torch.int64), 1
    for factor in factors:
        line, one = _line(factor)
        out = torch.tensordot(out, line, dims=0)  # phases and taps of each dimension in turn
        divisor *= one
    rank = len(factors)
    out = out.permute([*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)])
    return out.reshape(-1, *[3] * rank), divisor


@dataclass(eq=False)
class Lines(Operation):
    """Numbers in straight lines between those of its input, `factors` times as many: bilinear upsampling. In no
    program: a convolution with whole weights, whose channels hold phases, put between the pixels."""

    WORD = "bilinear upsampling"

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        raise AssertionError(f"{self.name} is in no program")

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
        if step.inputs[0].own_grid is None:
            return None
        weight, divisor = _kernels(step)
        scale = torch.full((len(weight),), 1 / divisor, dtype=torch.float64)
        inputs, shape, window = _bordered(step, at)
        numbers = weight.to(torch.int16), scale, torch.zeros_like(scale)
        op = Weighted(step.name, inputs, grid, shape, *numbers, groups=step.shape[1], **window)
        return _woven(step, at.add(op), at)

    @classmethod
    def floating(cls, step: Step, at: Lowering) -> Operation:
        weight, divisor = _kernels(step)
        inputs, shape, window = _bordered(step, at)
        numbers = weight.float() / divisor, torch.zeros(len(weight))
        op = FloatLayer(step.name, inputs, None, shape, *numbers, groups=step.shape[1], **window)
        return _woven(step, at.add(op), at)


def _kernels(step: Step) -> tuple[Tensor, int]:
    """(weight, divisor) of the convolution, for each channel one of each phase."""
    weight, divisor = _weights(step.attributes["factors"])
    return weight.repeat(step.shape[1], *[1] * (weight.dim() - 1)).unsqueeze(1), divisor


def _bordered(step: Step, at: Lowering) -> tuple[tuple[Operation], tuple[int, ...], dict[str, Any]]:
    """(the input of `step` with each border once more; shape and window of the convolution on it)."""
    source, spatial = at.value(step.inputs[0]), len(step.attributes["factors"])
    batch, channels, *sizes = source.shape
    sides = (0, *[1] * spatial)
    wider = (batch, channels, *(n + 2 for n in sizes))
    padded = at.add(Pad(step.name, (source,), source.grid, wider, sides, sides, 0.0, "replicate"))
    shape = (batch, channels * prod(step.attributes["factors"]), *sizes)
    ones = (1,) * spatial
    return (padded,), shape, {"stride": ones, "padding": (0,) * spatial, "dilation": ones}


def _woven(step: Step, op: Operation, at: Lowering) -> Operation:
    return at.add(PixelShuffle(step.name, (op,), op.grid, step.shape, step.attributes["factors"]))
