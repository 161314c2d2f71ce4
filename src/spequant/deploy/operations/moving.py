"""Numbers put elsewhere, unchanged: flattening, concatenation, slicing with a step, channels of zeros."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.deploy.grids import Grid
from spequant.deploy.operations.layer import Weighted
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step


def _flatten(start_dim: int = 0, end_dim: int = -1) -> dict[str, Any]:
    if (start_dim, end_dim) != (1, -1):
        raise ValueError(f"flattening from {start_dim} to {end_dim} has no form here; expected all but the batch")
    return {}


def _concat(dim: int = 0) -> dict[str, Any]:
    if dim != 1:
        raise ValueError(f"concatenation over dimension {dim} has no integer form here; expected 1, channels")
    return {}


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> dict[str, Any]:
    if training and p:
        raise ValueError("it is active in eval mode, too; write F.dropout(x, p, training=self.training)")
    return {}


def _sliced(index: Any) -> dict[str, Any]:
    """x[:, :, ::s, ::s]"""
    parts = list(index) if isinstance(index, tuple) else [index]
    plain = all(isinstance(p, slice) and p.start in (None, 0) and p.stop is None for p in parts)
    steps = [p.step or 1 for p in parts] if plain else []
    if not plain or len(steps) != 4 or steps[:2] != [1, 1]:
        raise ValueError("this indexing has no integer form; expected x[:, :, ::s, ::s]")
    return {"stride": tuple(steps[2:])}


def _pad(pad: Any, mode: str = "constant", value: Any = None) -> dict[str, Any]:
    sides = tuple(pad)
    if mode != "constant" or value or len(sides) != 6 or any(sides[:4]):
        raise ValueError(f"padding {sides} has no integer form here; expected zero channels only")
    return {"channels": sides[4:]}


@dataclass(eq=False)
class Flatten(Operation):
    """All dimensions but the batch as one."""

    WORD = "flatten"
    COMMUTES = True
    MODULES: ClassVar[dict[type, Read]] = {nn.Flatten: lambda m: _flatten(m.start_dim, m.end_dim)}
    FUNCTIONS: ClassVar[dict[Any, Read]] = {torch.flatten: _flatten}
    METHODS: ClassVar[dict[str, Read]] = {"flatten": _flatten}

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.values(inputs)[0].flatten(1)


@dataclass(eq=False)
class Concat(Operation):
    """Its inputs one after the other, over channels."""

    WORD = "concat"
    COMMUTES = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = {torch.cat: _concat}

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.cat(self.values(inputs), 1)


@dataclass(eq=False)
class Same(Operation):
    """What leaves values as they are. In no program: its input stands for it."""

    WORD = "same"
    MODULES: ClassVar[dict[type, Read]] = dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), lambda module: {})
    FUNCTIONS: ClassVar[dict[Any, Read]] = {F.dropout: _dropout}
    METHODS: ClassVar[dict[str, Read]] = {"contiguous": lambda **_: {}}

    @classmethod
    def own_grid(cls, step: Step) -> Grid | None:
        return step.inputs[0].own_grid

    @classmethod
    def carried(cls, step: Step, grid: Grid, at: Lowering) -> Operation | None:
        return at.codes(step.inputs[0], grid)

    @classmethod
    def floating(cls, step: Step, at: Lowering) -> Operation:
        return at.value(step.inputs[0])


def _spread(step: Step, grid: Grid, at: Lowering) -> Operation:
    """`step`, a slice, channels of zeros, or these behind a slice, as a 1 x 1 convolution with the codes 0 and 1."""
    before, after, stride, source = 0, 0, (1, 1), step
    if source.kind is Pad:
        (before, after), source = source.attributes["channels"], source.inputs[0]
    if source.kind is Slice:
        stride, source = source.attributes["stride"], source.inputs[0]
    inside = at.codes(source, grid)
    eye = torch.eye(source.shape[1], dtype=torch.int16)
    weight = torch.cat([eye.new_zeros(before, len(eye)), eye, eye.new_zeros(after, len(eye))])
    scale = torch.ones(len(weight), dtype=torch.float64)
    parts = weight[:, :, None, None], scale, torch.zeros_like(scale), stride, (0, 0), (1, 1)
    return at.add(Weighted(step.name, (inside,), grid, step.shape, *parts))


@dataclass(eq=False)
class Slice(Operation):
    """Every so many positions. In no program: on codes it is a convolution, in float it has no form."""

    WORD = "stride"
    IMAGES = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = {operator.getitem: _sliced}

    @classmethod
    def carried(cls, step: Step, grid: Grid, at: Lowering) -> Operation | None:
        return _spread(step, grid, at)

    @classmethod
    def floating(cls, step: Step, at: Lowering) -> Operation:
        raise ValueError(f"{step.name}: {cls.WORD} has no integer form here, and no float one; it is not exported")


@dataclass(eq=False)
class Pad(Slice):
    """Channels of zeros on both sides. In no program, as `Slice`."""

    WORD = "pad"
    FUNCTIONS: ClassVar[dict[Any, Read]] = {F.pad: _pad}
