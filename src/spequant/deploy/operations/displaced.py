"""Steps that put the batch elsewhere than first, and later steps that put it back: what they amount to together.

Channel shuffle written with a batch that changes places (`reshape(batch * channels // 2, 2, -1).permute(1, 0, 2)`), or
sequences that go first for a while, only move numbers. So each such step is computed on the places of numbers, until
every sample has its own numbers again, in one pattern: that is a reshape, a slice and a transpose of each sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from spequant.deploy.operations.moving import Same
from spequant.deploy.operations.operation import Operation, Step
from spequant.deploy.operations.shaping import Reshape, Transpose, batch_of, reshape_step, transposed
from spequant.deploy.operations.slicing import Parts, Slice, sliced


class Elsewhere(ValueError):
    """What cannot stay, where a later step does not put the batch back. place: the step that is at fault."""

    def __init__(self, place: str, error: ValueError):
        super().__init__(str(error))
        self.place = place


@dataclass(eq=False)
class Displaced(Operation):
    """What moves with the batch elsewhere, and is put back by later steps. In no program. places: of its numbers in its
    input; why: it cannot stay so."""

    WORD = "a batch that is not the first dimension"

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        raise AssertionError(f"{self.name} is in no program")


def settled(step: Step) -> Step:
    """`step.kind.settled(step)`, where that has a place; what several steps that put the batch elsewhere amount to.
    ValueError: nothing that has a place here."""
    inside = next((i for i in step.inputs if i.kind is Displaced or _of_displaced(i)), None)
    if inside is None:
        try:
            return step.kind.settled(step)
        except ValueError as error:
            if step.kind not in (Reshape, Transpose, Slice):
                raise
            return _moved(step, step.inputs[0], _places(step.inputs[0].shape), Elsewhere(step.name, error))
    displaced = inside if inside.kind is Displaced else inside.inputs[0]
    if step.kind not in (Reshape, Transpose, Slice, Same):
        raise displaced.attributes["why"]
    return _moved(step, displaced.inputs[0], displaced.attributes["places"], displaced.attributes["why"])


def _of_displaced(step: Step) -> bool:
    return step.kind is Parts and step.inputs[0].kind is Displaced


def _places(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


def _moved(step: Step, source: Step, places: Tensor, why: Elsewhere) -> Step:
    """`step`, which moves numbers that are at `places` of `source`."""
    try:
        places = _step_on(places, step)
    except (RuntimeError, IndexError, TypeError):
        raise why from None
    batch = batch_of(source)
    if places.shape[0] == batch:
        samples = places.reshape(batch, -1)
        apart = torch.arange(batch)[:, None] * (torch.Size(source.shape).numel() // batch)
        if torch.equal(samples, samples[:1] + apart):
            return _gathered(step, source, places[0], batch, why)
    return Step(step.name, Displaced, (source,), tuple(places.shape), {"places": places, "why": why})


def _step_on(places: Tensor, step: Step) -> Tensor:
    a, (source, *_) = step.attributes, step.inputs
    if step.kind is Reshape:
        return places.reshape(step.shape)
    if step.kind is Transpose:
        return places.permute([d % places.dim() for d in a["order"]]) if "order" in a else a["by"](places)
    if step.kind is Slice and source.kind is Parts:
        dim, shapes, (number,) = source.attributes["dim"], source.attributes["shapes"], a["index"]
        sizes = [shape[dim] if len(shape) == places.dim() else 1 for shape in shapes]
        return places.split(sizes, dim)[number].reshape(step.shape)
    if step.kind is Slice:
        return places.select(*a["along"]) if "along" in a and isinstance(a["along"][1], int) else _indexed(places, a)
    return places


def _indexed(places: Tensor, attributes: dict[str, Any]) -> Tensor:
    if "along" not in attributes:
        return places[attributes["index"]]
    dim, part = attributes["along"]
    return places.movedim(dim, 0)[part].movedim(0, dim)


def _gathered(step: Step, source: Step, places: Tensor, batch: int, why: Elsewhere) -> Step:
    """The numbers at `places` of each sample of `source`: digits of these places, a part of each, in another order."""
    size, first = torch.Size(source.shape).numel() // batch, int(places.flatten()[0])
    along = [d for d, n in enumerate(places.shape) if n > 1]
    strides = {d: int(places.movedim(d, 0).reshape(places.shape[d], -1)[1, 0]) - first for d in along}
    along.sort(key=lambda d: -strides[d])
    units = [size, *(strides[d] for d in along), 1]
    if min(units) < 1 or any(big % small for big, small in pairwise(units)):
        raise why
    digits = [big // small for big, small in pairwise(units)]
    starts = [first // unit % digit for unit, digit in zip(units[1:], digits, strict=True)]
    counts = [*(places.shape[d] for d in along), 1]
    if any(start + n > digit for start, n, digit in zip(starts, counts, digits, strict=True)):
        raise why
    ranges = [(0, batch, 1), *((start, start + n, 1) for start, n in zip(starts, counts, strict=True))]
    order = (0, *(1 + along.index(d) for d in sorted(along)), len(counts))
    whole = torch.arange(size).reshape(digits)[tuple(slice(*r) for r in ranges[1:])].permute([d - 1 for d in order[1:]])
    if not torch.equal(whole.reshape(places.shape), places):
        raise why
    cut = sliced(reshape_step(source, (batch, *digits), step.name), ranges, (batch, *counts), step.name)
    return reshape_step(transposed(cut, order, step.name), step.shape, step.name)
