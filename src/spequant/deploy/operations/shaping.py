"""The numbers of each sample in another shape or order: reshaping, transposing, shuffles of channels and pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.deploy.operations.operation import Operation, Read, Step


def _by_shape(*arguments: Any, **options: Any) -> dict[str, Any]:
    """What the result's shape says. ValueError: a view as another type."""
    if any(isinstance(a, torch.dtype) for a in (*arguments, *options.values())):
        raise ValueError("a view as another type has no integer form; expected a shape")
    return {}


@dataclass(eq=False)
class Reshape(Operation):
    """The numbers of each sample in their order, in the shape of its result."""

    WORD = "reshape"
    COMMUTES = MOVES = True
    MODULES: ClassVar[dict[type, Read]] = dict.fromkeys((nn.Flatten, nn.Unflatten), lambda module: {})
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys(
        (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten), _by_shape
    )
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(
        ("flatten", "reshape", "reshape_as", "squeeze", "unflatten", "unsqueeze", "view", "view_as"), _by_shape
    )

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        return x.reshape(-1, *self.shape[1:])

    @classmethod
    def settled(cls, step: Step) -> Step:
        """One reshape in place of several, none where the shape stays; of all dimensions but the batch, `Flatten`. A
        sample may be several rows, as of a linear layer that is called on each."""
        source, shape, batch = step.inputs[0], step.shape, batch_of(step)
        rows = shape[0] if len(shape) > 1 else 0 if shape != (batch,) else batch
        if not rows or rows % batch:
            raise ValueError(
                f"from {source.shape} to {shape}, of which the first is the batch, samples are mixed, which has no "
                "form here; expected the batch to stay the first dimension: write torch.flatten(x, 1)"
            )
        if source.kind in (Reshape, Flatten):
            source = source.inputs[0]
        if source.shape == shape:
            return source
        flat = len(shape) == 2 and source.shape[0] == shape[0]
        return Step(step.name, Flatten if flat else Reshape, (source,), shape)


@dataclass(eq=False)
class Flatten(Operation):
    """All dimensions but the batch as one."""

    WORD = "flatten"
    COMMUTES = MOVES = True

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.values(inputs)[0].flatten(1)


def reshape_step(source: Step, shape: tuple[int, ...], name: str) -> Step:
    """`source` in another shape, by a step called `name`."""
    return Reshape.settled(Step(name, Reshape, (source,), shape))


def batch_of(step: Step) -> int:
    """How many samples the network was traced with."""
    while step.inputs:
        step = step.inputs[0]
    return step.shape[0]


def _permuted(*dims: Any) -> dict[str, Any]:
    return {"order": tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims}


def _swapped(dim0: int, dim1: int) -> dict[str, Any]:
    return {"by": lambda x: x.transpose(dim0, dim1)}


def _moved(source: Any, destination: Any) -> dict[str, Any]:
    return {"by": lambda x: x.movedim(source, destination)}


SWAPS = ("swapaxes", "swapdims", "transpose")


@dataclass(eq=False)
class Transpose(Operation):
    """Dimensions in another order: that of the result is `order` of its input's, whose first stays, the batch."""

    order: tuple[int, ...] = ()

    WORD = "transpose"
    COMMUTES = MOVES = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = {
        torch.permute: _permuted,
        **dict.fromkeys((torch.swapaxes, torch.swapdims, torch.transpose), _swapped),
        **dict.fromkeys((torch.movedim, torch.moveaxis), _moved),
    }
    METHODS: ClassVar[dict[str, Read]] = {
        "permute": _permuted,
        **dict.fromkeys(SWAPS, _swapped),
        **dict.fromkeys(("movedim", "moveaxis"), _moved),
    }

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.values(inputs)[0].permute(self.order)

    @classmethod
    def settled(cls, step: Step) -> Step:
        order = order_of(step)
        if order[0] != 0:
            raise ValueError(f"dimensions {order} put the batch elsewhere; expected 0 as the first")
        moved = [d for d in order if step.inputs[0].shape[d] > 1]
        if moved == sorted(moved):  # dimensions of one number change places with others, which moves nothing
            return reshape_step(step.inputs[0], step.shape, step.name)
        step.attributes = {"order": order}
        return step


def order_of(step: Step) -> tuple[int, ...]:
    """Which dimension of its input each of a transposing `step` is."""
    rank, a = len(step.inputs[0].shape), step.attributes
    if "by" in a:
        return tuple(n - 1 for n in a["by"](torch.empty(*range(1, rank + 1), device="meta")).shape)
    return tuple(d % rank for d in a["order"])


def transposed(source: Step, order: tuple[int, ...], name: str) -> Step:
    """`source` with its dimensions in `order`, by a step called `name`."""
    shape = tuple(source.shape[d] for d in order)
    return Transpose.settled(Step(name, Transpose, (source,), shape, {"order": order}))


def _factor(upscale_factor: int) -> dict[str, Any]:
    return {"factor": upscale_factor}


@dataclass(eq=False)
class PixelShuffle(Operation):
    """Channels to pixels: (batch, channels * r * s ..., h, w ...) to (batch, channels, h * r, w * s ...); factors: r, s
    ..."""

    factors: tuple[int, ...] = ()

    WORD = "pixel shuffle"
    COMMUTES = MOVES = True
    MODULES: ClassVar[dict[type, Read]] = {nn.PixelShuffle: lambda m: _factor(m.upscale_factor)}
    FUNCTIONS: ClassVar[dict[Any, Read]] = {F.pixel_shuffle: _factor}

    @property
    def apart(self) -> tuple[int, ...]:
        """The input's dimensions but the batch, with the phases of each channel on their own."""
        return (self.shape[1], *self.factors, *self.inputs[0].shape[2:])

    @property
    def order(self) -> tuple[int, ...]:
        """Of these dimensions, the batch first, in the result: phases behind their positions."""
        spatial = len(self.factors)
        return (0, 1, *(d for i in range(spatial) for d in (2 + spatial + i, 2 + i)))

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        return x.reshape(len(x), *self.apart).permute(self.order).reshape(len(x), *self.shape[1:])

    @classmethod
    def settled(cls, step: Step) -> Step:
        spatial = len(_image(step.shape)) - 2
        return Step(step.name, cls, step.inputs, step.shape, {"factors": (step.attributes["factor"],) * spatial})


@dataclass(eq=False)
class PixelUnshuffle(Operation):
    """Pixels to channels, the inverse of `PixelShuffle`. In no program."""

    WORD = "pixel unshuffle"
    MODULES: ClassVar[dict[type, Read]] = {nn.PixelUnshuffle: lambda m: _factor(m.downscale_factor)}
    FUNCTIONS: ClassVar[dict[Any, Read]] = {F.pixel_unshuffle: lambda downscale_factor: _factor(downscale_factor)}

    @classmethod
    def settled(cls, step: Step) -> Step:
        r, source = step.attributes["factor"], step.inputs[0]
        batch, channels, h, w = _image(source.shape)
        apart = reshape_step(source, (batch, channels, h // r, r, w // r, r), step.name)
        return reshape_step(transposed(apart, (0, 1, 3, 5, 2, 4), step.name), step.shape, step.name)


def _image(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 4:
        raise ValueError(f"{len(shape)} dimensions have no form here; expected 4, (batch, channels, height, width)")
    return shape


@dataclass(eq=False)
class ChannelShuffle(Operation):
    """Channels of several groups in turn. In no program: reshaping and transposing."""

    WORD = "channel shuffle"
    MODULES: ClassVar[dict[type, Read]] = {nn.ChannelShuffle: lambda m: {"groups": m.groups}}
    FUNCTIONS: ClassVar[dict[Any, Read]] = {F.channel_shuffle: lambda groups: {"groups": groups}}

    @classmethod
    def settled(cls, step: Step) -> Step:
        source, groups = step.inputs[0], step.attributes["groups"]
        batch, channels, *sizes = source.shape
        apart = reshape_step(source, (batch, groups, channels // groups, math.prod(sizes)), step.name)
        return reshape_step(transposed(apart, (0, 2, 1, 3), step.name), step.shape, step.name)
