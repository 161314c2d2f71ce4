"""Parts of a tensor, and zeros or its own numbers around it."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.deploy.grids import Grid
from spequant.deploy.operations.layer import Weighted
from spequant.deploy.operations.moving import Concat
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step
from spequant.deploy.operations.shaping import reshape_step
from spequant.deploy.operations.windows import Sides

Range = tuple[int, int, int]
"""(first, end, step) along a dimension."""


def _indexed(index: Any) -> dict[str, Any]:
    return {"index": index if isinstance(index, tuple) else (index,)}


def _narrowed(dim: int, start: int, length: int) -> dict[str, Any]:
    return {"along": (dim, slice(start, start + length))}


def _selected(dim: int, index: int) -> dict[str, Any]:
    return {"along": (dim, index)}


@dataclass(eq=False)
class Slice(Operation):
    """Numbers start, start + step ... before stop along each dimension but the batch."""

    start: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    step: tuple[int, ...] = ()

    WORD = "slice"
    COMMUTES = MOVES = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = {
        operator.getitem: _indexed,
        torch.narrow: _narrowed,
        torch.select: _selected,
    }
    METHODS: ClassVar[dict[str, Read]] = {"narrow": _narrowed, "select": _selected}

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        return x[(slice(None), *map(slice, self.start, self.stop, self.step))]

    @classmethod
    def settled(cls, step: Step) -> Step:
        source = step.inputs[0]
        if part := getattr(source.kind, "part", None):
            return part(source, step.attributes["index"], step)
        if any(isinstance(i, list | Tensor) for i in step.attributes.get("index", ())):
            return taken(step, lambda x: x[step.attributes["index"]])
        if "along" in step.attributes:
            dim, what = step.attributes["along"]
            index: list[Any] = [slice(None)] * len(source.shape)
            index[dim] = what
        else:
            index = list(step.attributes["index"])
        return sliced(source, _ranges(index, source.shape), step.shape, step.name)

    @classmethod
    def carried(cls, step: Step, grid: Grid, at: Lowering) -> Operation | None:
        if step.own_grid is None and _strides(step) is not None:
            return _spread(step, grid, at)
        return super().carried(step, grid, at)


def _ranges(index: list[Any], shape: tuple[int, ...]) -> list[Range]:
    """Of each dimension of `shape`, what `index` takes. ValueError: an index by tensors, or of the batch."""
    index = [i for i in index if i is not None]  # a new dimension is the result's shape alone
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index[at : at + 1] = [slice(None)] * (len(shape) - len(index) + 1)
    ranges: list[Range] = []
    for size, i in zip(shape, index, strict=False):
        if isinstance(i, int):
            ranges.append((i % size, i % size + 1, 1))
        elif isinstance(i, slice) and all(v is None or isinstance(v, int) for v in (i.start, i.stop, i.step)):
            ranges.append(i.indices(size))
        else:
            raise ValueError(f"an index by {type(i).__name__} has no integer form; expected numbers and slices")
    ranges += [(0, size, 1) for size in shape[len(ranges) :]]
    if ranges[0] != (0, shape[0], 1):
        raise ValueError("this indexing takes a part of the batch, which has no form here; expected x[:, ...]")
    return ranges


def sliced(source: Step, ranges: Sequence[Range], shape: tuple[int, ...], name: str) -> Step:
    """`ranges` of `source`, in `shape`, by steps called `name`."""
    if any(r != (0, size, 1) for r, size in zip(ranges, source.shape, strict=True)):
        start, stop, step = zip(*ranges[1:], strict=True)
        sizes = (len(range(*r)) for r in ranges)
        source = Step(name, Slice, (source,), tuple(sizes), {"start": start, "stop": stop, "step": step})
    return reshape_step(source, shape, name)


MOST_PIECES = 256
"""The most that a dimension is put together of."""


def taken(step: Step, by: Callable[[Tensor], Tensor]) -> Step:
    """`step`, which takes numbers of its input in another order along a dimension, some several times or not at all:
    slices, one after the other. by: what it does.

    ValueError: numbers of several dimensions together, or samples of the batch.
    """
    source, name = step.inputs[0], step.name
    if len(step.shape) != len(source.shape):
        raise ValueError(f"from {source.shape} to {step.shape} has no form here; expected as many dimensions")
    for dim, size in enumerate(source.shape):
        line = torch.arange(size).reshape([-1 if d == dim else 1 for d in range(len(source.shape))])
        places = by(line.expand(step.inputs[0].shape)).movedim(dim, 0).flatten(1)
        if bool((places != places[:, :1]).any()):
            raise ValueError("numbers change places across dimensions, which has no form here; expected along one")
        indices = places[:, 0].tolist()
        if dim == 0 and indices != list(range(size)):
            raise ValueError("this takes samples of the batch, which has no form here; expected those of one")
        source = gather_step(source, dim, indices, name)
    return source


def gather_step(source: Step, dim: int, indices: Sequence[int], name: str) -> Step:
    """What `source` has at `indices` of dimension `dim`, in their order. ValueError: more than `MOST_PIECES` pieces."""
    pieces = _runs(indices)
    if len(pieces) > MOST_PIECES:
        raise ValueError(f"an order of {len(pieces)} pieces has no form here; expected at most {MOST_PIECES}")
    parts, shape = [], list(source.shape)
    for piece in pieces:
        ranges: list[Range] = [(0, size, 1) for size in source.shape]
        ranges[dim], shape[dim] = piece, len(range(*piece))
        parts.append(sliced(source, ranges, tuple(shape), name))
    if len(parts) == 1:
        return parts[0]
    shape[dim] = len(indices)
    return Step(name, Concat, tuple(parts), tuple(shape), {"dim": dim})


def _runs(indices: Sequence[int]) -> list[Range]:
    """`indices` as ranges that go up, as few as follow one after the other."""
    runs: list[list[int]] = []
    for i in indices:
        last = runs[-1] if runs else [i]
        if i > last[-1] and (len(last) == 1 or i - last[-1] == last[1] - last[0]):
            last.append(i)
        else:
            runs.append([i])
    return [(run[0], run[-1] + 1, run[1] - run[0] if len(run) > 1 else 1) for run in runs]


def _split(split_size_or_sections: Any = None, dim: int = 0, **_: Any) -> dict[str, Any]:
    return {"dim": dim}


SPLIT_READERS = {"chunk": _split, "split": _split, "split_with_sizes": _split, "tensor_split": _split}


@dataclass(eq=False)
class Parts(Operation):
    """A tensor in several, along one dimension. In no program: each part is a slice. shapes: of the parts."""

    WORD = "split"
    FUNCTIONS: ClassVar[dict[Any, Read]] = {
        **{getattr(torch, name): read for name, read in SPLIT_READERS.items()},
        torch.unbind: lambda dim=0: {"dim": dim},
    }
    METHODS: ClassVar[dict[str, Read]] = {**SPLIT_READERS, "unbind": lambda dim=0: {"dim": dim}}

    @staticmethod
    def part(parts: Step, index: Any, step: Step) -> Step:
        """Part number `index`, which `step` takes."""
        source, shapes = parts.inputs[0], parts.attributes["shapes"]
        dim = parts.attributes["dim"] % len(source.shape)
        if dim == 0:
            raise ValueError("a part of the batch has no form here; expected parts of another dimension")
        if len(index) != 1 or not isinstance(index[0], int):
            raise ValueError(f"index {index} of several tensors has no form here; expected one number")
        number = index[0] % len(shapes)
        sizes = [shape[dim] if len(shape) == len(source.shape) else 1 for shape in shapes]
        ranges: list[Range] = [(0, size, 1) for size in source.shape]
        ranges[dim] = (sum(sizes[:number]), sum(sizes[: number + 1]), 1)
        return sliced(source, ranges, step.shape, step.name)


PAD_MODES = ("constant", "reflect", "replicate", "circular")


def _pad(pad: Any, mode: str = "constant", value: float | None = None) -> dict[str, Any]:
    if mode not in PAD_MODES:
        raise ValueError(f"padding by {mode!r} has no integer form here; expected {', '.join(PAD_MODES)}")
    return {"sides": tuple(pad), "mode": mode, "value": float(value or 0.0)}


def _padding(mode: str) -> Read:
    return lambda m: _pad(m.padding, mode, getattr(m, "value", None))


PADS = {
    "constant": (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),  # those of zeros, too
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
}


@dataclass(eq=False)
class Pad(Operation):
    """`before` and `after` numbers more along each dimension but the batch: `value`, or by `mode` its own numbers."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    value: float = 0.0
    mode: str = "constant"

    WORD = "pad"
    COMMUTES = MOVES = True
    MODULES: ClassVar[dict[type, Read]] = {kind: _padding(mode) for mode, kinds in PADS.items() for kind in kinds}
    FUNCTIONS: ClassVar[dict[Any, Read]] = {F.pad: _pad}

    @property
    def filling(self) -> float:
        """`value` in the numbers that it computes on."""
        return self.value if self.grid is None else self.grid.nearest(self.value)

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        sides = [n for pair in zip(reversed(self.before), reversed(self.after), strict=True) for n in pair]
        if self.mode == "constant":
            return F.pad(x, sides, value=self.filling)
        return F.pad(x, sides[: 2 * (x.dim() - 2)], mode=self.mode)

    @classmethod
    def settled(cls, step: Step) -> Step:
        """Where sides are below zero, a slice."""
        source, options = step.inputs[0], dict(step.attributes)
        sides = options.pop("sides")
        rank = len(source.shape)
        pairs = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
        pairs = [(0, 0)] * (rank - len(pairs)) + pairs
        if any(pairs[0]):
            raise ValueError("padding of the batch has no form here; expected that of other dimensions")
        if any(n < 0 for pair in pairs for n in pair):
            cut = [(max(0, -a), size - max(0, -b), 1) for (a, b), size in zip(pairs, source.shape, strict=True)]
            source = sliced(source, cut, tuple(stop - start for start, stop, _ in cut), step.name)
            pairs = [(max(0, a), max(0, b)) for a, b in pairs]
        if not any(map(any, pairs)):
            return source
        if options["mode"] == "circular":
            return wrapped(source, pairs, step.name)
        before, after = zip(*pairs[1:], strict=True)
        return Step(step.name, Pad, (source,), step.shape, {"before": before, "after": after, **options})

    @classmethod
    def margins(cls, step: Step) -> Sides | None:
        a = step.attributes
        if a["mode"] != "constant" or a["value"] or a["before"][0] or a["after"][0]:
            return None
        return a["before"][1:], a["after"][1:]

    @classmethod
    def carried(cls, step: Step, grid: Grid, at: Lowering) -> Operation | None:
        if step.own_grid is None and _channels(step) is not None:
            return _spread(step, grid, at)
        return super().carried(step, grid, at)


def wrapped(source: Step, sides: Sequence[tuple[int, int]], name: str) -> Step:
    """`source` with its other end before and after it along each dimension: `sides`."""
    for dim, (before, after) in enumerate(sides):
        size = source.shape[dim]
        source = gather_step(source, dim, [i % size for i in range(-before, size + after)], name)
    return source


def _strides(step: Step) -> tuple[int, ...] | None:
    """Of x[:, :, ::s, ::s]; None: another slice."""
    if step.kind is not Slice or len(step.shape) != 4:
        return None
    a, sizes = step.attributes, step.inputs[0].shape[1:]
    whole = not any(a["start"]) and a["stop"] == sizes and a["step"][0] == 1
    return a["step"][1:] if whole else None


def _channels(step: Step) -> tuple[int, int] | None:
    """(before, after) of a `step` that adds channels of zeros to an image; None: another one."""
    a = step.attributes
    if step.kind is not Pad or len(step.shape) != 4 or a["mode"] != "constant" or a["value"]:
        return None
    return None if any((*a["before"][1:], *a["after"][1:])) else (a["before"][0], a["after"][0])


def _spread(step: Step, grid: Grid, at: Lowering) -> Operation:
    """`step`, a slice with strides, channels of zeros, or these behind a slice, as a 1 x 1 convolution with the codes 0
    and 1, which engines compute together with an addition behind it."""
    before, after, stride, source = 0, 0, (1, 1), step
    if (channels := _channels(source)) is not None:
        (before, after), source = channels, source.inputs[0]
    if (strides := _strides(source)) is not None:
        stride, source = strides, source.inputs[0]
    inside = at.codes(source, grid)
    eye = torch.eye(source.shape[1], dtype=torch.int16)
    weight = torch.cat([eye.new_zeros(before, len(eye)), eye, eye.new_zeros(after, len(eye))])
    scale = torch.ones(len(weight), dtype=torch.float64)
    parts = weight[:, :, None, None], scale, torch.zeros_like(scale), stride, (0, 0), (1, 1)
    return at.add(Weighted(step.name, (inside,), grid, step.shape, *parts))
