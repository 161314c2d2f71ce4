"""Operations that put numbers elsewhere, as calls of one kernel: it counts the numbers of the result in torch's order,
digit by digit, and each digit moves the place that is read and the place that is written by a step."""

from collections.abc import Sequence
from math import prod

import numpy as np

from spequant.deploy.c.emitter import CEmitter
from spequant.deploy.c.tensors import WORD, Storage, Tensor, stride_of
from spequant.deploy.operations import (
    Concat,
    Flatten,
    Operation,
    Pad,
    PixelShuffle,
    Repeat,
    Reshape,
    Slice,
    Transpose,
)

DIGITS = 8
"""Digits of a count, at most."""
Digit = tuple[int, int]
"""(numbers, step of the place that is read)"""
SPATIAL = 3


def three(sizes: Sequence[int], missing: int = 1) -> tuple[int, ...]:
    """`sizes` of positions as three of them."""
    return (*[missing] * (SPATIAL - len(sizes)), *sizes)


def steps_of(shape: Sequence[int]) -> list[int]:
    """How far apart neighbours along each dimension are in torch's order."""
    return [prod(shape[d + 1 :]) for d in range(len(shape))]


def copy_like(source: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A new tensor of numbers like those of `source`."""
    size = stride_of(shape[0], source.bits) * prod(shape[1:])
    return Tensor(Storage(source.storage.name, size), shape, source.bits, source.low, source.high, source.unit)


def moved(
    e: CEmitter,
    op: Operation,
    source: Tensor,
    out: Tensor,
    digits: Sequence[Digit],
    first: int = 0,
    *,
    to_first: int = 0,
    to_steps: Sequence[int] | None = None,
    more: int | None = None,
) -> None:
    """Numbers of `source` from place `first` on, in `out` from `to_first` on. digits: the last counts fastest.
    to_steps: of the places that are written; None: one after the other. more: added to what is stored; None: so that
    codes stay.

    ValueError: too many digits.
    """
    counts = [n for n, _ in digits]
    to_steps = steps_of(counts) if to_steps is None else list(to_steps)
    places = [(n, a, b) for (n, a), b in zip(digits, to_steps, strict=True) if n > 1]
    joined: list[tuple[int, int, int]] = []
    for n, a, b in places:
        if joined and joined[-1][1] == n * a and joined[-1][2] == n * b:
            joined[-1] = (joined[-1][0] * n, a, b)
        else:
            joined.append((n, a, b))
    if len(joined) > DIGITS:
        raise ValueError(
            f"{op.name}: {op.WORD} moves {len(joined)} dimensions; expected at most {DIGITS}: --to onnx takes it"
        )
    filled = [(1, 0, 0)] * (DIGITS - len(joined)) + joined
    numbers, from_steps, to = (tuple(x) for x in zip(*filled, strict=True))
    same = source.low - out.low if WORD not in (source.bits, out.bits) else 0
    e.call(
        "move",
        op,
        (source,),
        (out,),
        **{"from": source, "to": out, "from_positions": source.positions, "to_positions": out.positions},
        **{"from_first": first, "to_first": to_first, "counts": numbers, "from_steps": from_steps, "to_steps": to},
        moved=same if more is None else more,
    )


def copy_call(e: CEmitter, op: Operation, source: Tensor, out: Tensor, more: int | None = None) -> None:
    """All numbers of `source` in their order."""
    moved(e, op, source, out, [(source.channels * source.positions, 1)], more=more)


def moved_to(e: CEmitter, op: Operation, source: Tensor, order: Sequence[int]) -> Tensor:
    """`source` with its dimensions, of which channels are the first, in `order`."""
    shape, steps = tuple(source.shape[d] for d in order), steps_of(source.shape)
    out = copy_like(source, shape)
    moved(e, op, source, out, [(source.shape[d], steps[d]) for d in order])
    return out


def reshape(e: CEmitter, op: Reshape | Flatten) -> Tensor:
    """Where channels and positions stay as many, the same bytes."""
    source = e.value(op.inputs[0])
    shape = op.shape[1:]
    if (source.channels, source.positions) == (shape[0], prod(shape[1:])):
        return source.viewed(shape)
    out = e.new(op)
    copy_call(e, op, source, out)
    return out


def transpose(e: CEmitter, op: Transpose) -> Tensor:
    source, out = e.value(op.inputs[0]), e.new(op)
    steps = steps_of(source.shape)
    moved(e, op, source, out, [(source.shape[d - 1], steps[d - 1]) for d in op.order[1:]])
    return out


def pixel_shuffle(e: CEmitter, op: PixelShuffle) -> Tensor:
    source, out = e.value(op.inputs[0]), e.new(op)
    apart = op.apart
    steps = steps_of(apart)
    moved(e, op, source, out, [(apart[d - 1], steps[d - 1]) for d in op.order[1:]])
    return out


def cut(e: CEmitter, op: Slice) -> Tensor:
    source, out = e.value(op.inputs[0]), e.new(op)
    steps = steps_of(source.shape)
    digits = [(n, s * step) for n, s, step in zip(out.shape, steps, op.step, strict=True)]
    moved(e, op, source, out, digits, sum(first * s for first, s in zip(op.start, steps, strict=True)))
    return out


def repeat(e: CEmitter, op: Repeat) -> Tensor:
    source, out = e.value(op.inputs[0]), e.new(op)
    digits = [
        d
        for n, s, times in zip(source.shape, steps_of(source.shape), op.times, strict=True)
        for d in ((n, s), (times, 0))
    ]
    moved(e, op, source, out, digits)
    return out


def concat(e: CEmitter, op: Concat) -> Tensor:
    out, at, dim = e.new(op), 0, op.dim - 1
    sources = [e.value(i) for i in op.inputs]
    steps = steps_of(out.shape)
    for source in sources:
        digits = list(zip(source.shape, steps_of(source.shape), strict=True))
        moved(e, op, source, out, digits, to_first=at * steps[dim], to_steps=steps)
        at += source.shape[dim]
    return out


def pad(e: CEmitter, op: Pad) -> Tensor:
    """One number everywhere, or its own numbers at its sides; then `source` in the middle."""
    source, out = e.value(op.inputs[0]), e.new(op)
    steps, source_steps = steps_of(out.shape), steps_of(source.shape)
    if op.mode == "constant":
        value = int(op.filling) - out.low if op.grid is not None else round(op.filling / out.unit)
        sizes = {"positions": out.positions, "channels": out.channels}
        e.call("fill", op, (), (out,), to=out, **sizes, value=value)
        parts = [[(0, b, n, 1)] for b, n in zip(op.before, source.shape, strict=True)]
    else:
        parts = [_sides(op.mode, b, a, n) for b, a, n in zip(op.before, op.after, source.shape, strict=True)]
    for part in np.ndindex(*(len(p) for p in parts)):
        chosen = [p[i] for p, i in zip(parts, part, strict=True)]
        digits = [(n, s * step) for (_, _, n, step), s in zip(chosen, source_steps, strict=True)]
        first = sum(f * s for (f, _, _, _), s in zip(chosen, source_steps, strict=True))
        to_first = sum(t * s for (_, t, _, _), s in zip(chosen, steps, strict=True))
        moved(e, op, source, out, digits, first, to_first=to_first, to_steps=steps)
    return out


def _sides(mode: str, before: int, after: int, size: int) -> list[tuple[int, int, int, int]]:
    """(first number read, first written, numbers, step of reading) of the middle and of both sides."""
    step = 0 if mode == "replicate" else -1
    left = (0 if mode == "replicate" else before, 0, before, step)
    right = (size - 1 if mode == "replicate" else size - 2, before + size, after, step)
    return [part for part in ((0, before, size, 1), left, right) if part[2]]


def reshaped_as(e: CEmitter, op: Operation, source: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`source` in another shape; where channels and positions stay as many, the same bytes."""
    if (source.channels, source.positions) == (shape[0], prod(shape[1:])):
        return source.viewed(shape)
    out = copy_like(source, shape)
    copy_call(e, op, source, out)
    return out


def given_out(e: CEmitter, name: str, op: Operation) -> Tensor:
    """The output `op` as int32 numbers among the caller's scores."""
    source = e.value(op)
    if source.bits == WORD and not source.storage.in_scores:
        source.storage.in_scores, source.storage.offset = True, e.scores_size
        return source
    unit = source.unit if op.grid is None else op.grid.step
    storage = Storage(name, 4 * source.channels * source.positions, True, e.scores_size)
    out = Tensor(storage, source.shape, WORD, unit=unit)
    copy_call(e, op, source, out, source.low)
    return out
