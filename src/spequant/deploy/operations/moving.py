"""Numbers put elsewhere, unchanged: concatenation, repetition; and what leaves them where they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.deploy.operations.operation import Operation, Read, Step
from spequant.deploy.operations.shaping import reshape_step


def _listed(dim: int = 0, axis: int | None = None, **_: Any) -> dict[str, Any]:
    return {"dim": dim if axis is None else axis}


@dataclass(eq=False)
class Concat(Operation):
    """Its inputs one after the other, along dimension `dim`, channels above all."""

    dim: int = 1

    WORD = "concat"
    COMMUTES = MOVES = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = {
        **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _listed),
        torch.hstack: lambda *_: {"dim": 1},
    }

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.cat(self.values(inputs), self.dim)

    @classmethod
    def settled(cls, step: Step) -> Step:
        dim = step.attributes["dim"] % len(step.shape)
        if dim == 0:
            raise ValueError("concatenation over dimension 0 has no integer form here; expected 1, channels")
        if len(step.inputs) == 1:
            return step.inputs[0]
        step.attributes = {"dim": dim}
        return step


@dataclass(eq=False)
class Stack(Operation):
    """Its inputs along a new dimension. In no program: each is reshaped, and they are concatenated."""

    WORD = "stack"
    FUNCTIONS: ClassVar[dict[Any, Read]] = {torch.stack: _listed}

    @classmethod
    def settled(cls, step: Step) -> Step:
        dim, shape = step.attributes["dim"] % len(step.shape), list(step.shape)
        shape[dim] = 1
        inputs = tuple(reshape_step(i, tuple(shape), step.name) for i in step.inputs)
        return Concat.settled(Step(step.name, Concat, inputs, step.shape, {"dim": dim}))


@dataclass(eq=False)
class Repeat(Operation):
    """Each number `times` times in a row, along each dimension but the batch: upsampling to the nearest."""

    times: tuple[int, ...] = ()

    WORD = "upsample"
    COMMUTES = MOVES = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = {torch.broadcast_to: lambda *_, **__: {}}
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("broadcast_to", "expand", "expand_as"), lambda *_, **__: {})

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        for dim, times in enumerate(self.times, start=1):
            x = x if times == 1 else x.repeat_interleave(times, dim)
        return x

    @classmethod
    def settled(cls, step: Step) -> Step:
        return repeated(step.inputs[0], step.shape, step.name)


def repeated(source: Step, shape: tuple[int, ...], name: str) -> Step:
    """`source` upsampled to `shape`, of as many dimensions."""
    sizes = list(zip(shape, source.shape, strict=True)) if len(shape) == len(source.shape) else [(1, 2)]
    if any(large % small for large, small in sizes) or shape[0] != source.shape[0]:
        raise ValueError(
            f"resizing {source.shape[1:]} to {shape[1:]} has no integer form here; expected whole multiples of a "
            "sample's sizes"
        )
    times = tuple(large // small for large, small in sizes[1:])
    return source if set(times) == {1} else Step(name, Repeat, (source,), shape, {"times": times})


def unrepeated(step: Step, shape: tuple[int, ...]) -> Step:
    """What `step` repeats, where that is broadcast to `shape` all the same."""
    while step.kind is Repeat and all(
        size == 1 or times == 1 for size, times in zip(step.inputs[0].shape[1:], step.attributes["times"], strict=True)
    ):
        step = step.inputs[0]
    return step


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> dict[str, Any]:
    if training and p:
        raise ValueError("it is active in eval mode, too; write F.dropout(x, p, training=self.training)")
    return {}


DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(eq=False)
class Same(Operation):
    """What leaves values as they are. In no program: its input stands for it."""

    WORD = "same"
    MODULES: ClassVar[dict[type, Read]] = dict.fromkeys((nn.Identity, *DROPOUTS), lambda module: {})
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), _dropout)
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(
        ("clone", "contiguous", "detach", "float", "to", "type_as"), lambda *_, **__: {}
    )

    @classmethod
    def settled(cls, step: Step) -> Step:
        return step.inputs[0]
