"""Layers and additions as calls of kernels: on codes, with additions in the layer where they end in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from spequant.deploy.c.emitter import ON_A_GRID, CEmitter, Table
from spequant.deploy.c.moves import copy_like, moved, moved_to, three
from spequant.deploy.c.rounding import Rounding, Sum, code_sum, fixed_sum, rounding, scaled
from spequant.deploy.c.tensors import Tensor
from spequant.deploy.c.weights import Weights, lanes_for, packed, weights_of
from spequant.deploy.operations import Add, Flatten, Mul, Operation, Weighted
from spequant.deploy.operations.windows import sides

BLOCK = 8
"""Channels of a depthwise layer that are gathered together: whole bytes."""


@dataclass(frozen=True)
class Result:
    """Fields of `net_result`."""

    to: Tensor
    rounding: Rounding
    sum: Sum | None = None
    other: Tensor | None = None


def weighted(e: CEmitter, op: Weighted | Add) -> Tensor:
    """A layer, all that has its sums, and the additions that these end in."""
    group = e.fused[op].results
    layer = group[0][0]
    if not layer.spatial and len(layer.shape) > 2:
        return _of_last_dimension(e, layer)
    flat = layer.inputs[0]
    window = None
    if not layer.spatial and isinstance(flat, Flatten) and flat.inputs[0].grid == flat.grid:
        source = e.value(flat.inputs[0])
        window = source.shape
    else:
        source = e.value(flat)
    w = weights_of(layer, window)
    roundings = {conv: layer_rounding(e, conv, w, source) for conv, _ in group}
    if any(added is not None and roundings[conv].unequal for conv, added in group):
        group = e.parted(layer)
    others = {added: _other(e, conv, added) for conv, added in group if added is not None}
    results = []
    for conv, added in group:
        how, last = e.rounded(conv, roundings[conv]), added or conv
        e.tensors[last] = to = e.new(last)
        if added is None:
            results.append(Result(to, how))
        else:
            results.append(Result(to, how, _sum_of(e, added, conv), others[added]))
    results.sort(key=lambda r: r.other is not None and r.other.bits == r.to.bits)  # the last may lie on its addend
    _call(e, layer, source, w, results)
    return e.value(op)


def _other(e: CEmitter, conv: Operation, added: Add) -> Tensor:
    return e.value(next(i for i in added.inputs if i is not conv))


def _call(e: CEmitter, op: Weighted, source: Tensor, w: Weights, results: list[Result]) -> None:
    spatial = op.spatial or len(source.shape) - 1
    out = op.shape[2:] if op.spatial else (1,) * spatial
    before = sides(op.padding, spatial)[0] if op.spatial else (0,) * spatial
    kernel = op.weight.shape[2:] if op.spatial else source.shape[1:]
    lanes = lanes_for(w, source.high - source.low, int(np.prod(out)))
    low = int(w.lows[0])
    varying = bool((w.lows != low).any())
    last, inputs = results[-1], source.channels // op.groups
    block = min(op.groups, BLOCK) if inputs == 1 else 1
    reads = source, *dict.fromkeys(r.other for r in results if r.other is not None)
    e.call(
        "conv",
        op,
        reads,
        tuple(r.to for r in results),
        scratch=4 * w.chunks * w.chunk * block,
        macs=w.values.size * int(np.prod(out)),
        in_place=() if last.other is None else ((last.other, last.to),),
        **{"from": source, "size": three(source.shape[1:]), "out": three(out), "kernel": three(kernel)},
        stride=three(op.stride if op.spatial else (1,) * spatial),
        dilation=three(op.dilation if op.spatial else (1,) * spatial),
        before=three(before, 0),
        groups=op.groups,
        inputs=inputs,
        outputs=op.shape[1] // op.groups,
        **{"chunks": w.chunks, "chunk": w.chunk, "row": w.row, "run": lanes.run},
        **{"lanes": lanes.count, "zeros": _zeros(source), "block": block},
        low=0 if varying else low,
        step=w.step,
        lows=Table("int16_t", w.lows) if varying else None,
        weights=Table("uint8_t", packed(w)),
        dot=(lanes.count, lanes.bits, w.bits),
        results=results,
        count=len(results),
    )


def _zeros(source: Tensor) -> int:
    """A byte of what is stored for code 0."""
    return sum(-source.low << at for at in range(0, 8, source.bits))


def layer_rounding(e: CEmitter, op: Weighted, w: Weights, source: Tensor) -> Rounding:
    """From the kernel's sums, of stored codes, to the codes of `op`, or to int32."""
    ends = min(source.low, 0), max(source.high, 0)  # 0: padding
    each = np.stack([w.values * end for end in ends])
    first, last = each.min(0).sum(1), each.max(0).sum(1)
    moved = source.low * w.values.sum(1)
    step = op.step.numpy()
    if op.grid is None:
        slope = w.scale.astype(np.float64) * float(step) / e.word
        return scaled(slope * w.unit, slope * w.bias, moved)
    factor = ((step * w.scale).astype(np.float32) / np.float32(op.grid.step)).astype(np.float32)

    def twin(sums: np.ndarray) -> np.ndarray:
        return (w.unit * sums + w.bias[:, None]).astype(np.float32) * factor[:, None]

    return rounding(twin, factor.astype(np.float64) * w.unit, first, last, op.grid.low, op.grid.high, moved)


def _of_last_dimension(e: CEmitter, op: Weighted) -> Tensor:
    """A linear layer of the last of several dimensions: these become channels, and it a convolution of one position."""
    rank = len(op.shape) - 1
    order = (rank - 1, *range(rank - 1))
    source = moved_to(e, op, e.value(op.inputs[0]), order)
    w = weights_of(op)
    out = e.new(op, (op.shape[-1], *op.shape[1:-1]))
    positions = int(np.prod(out.shape[1:]))
    flat, to = source.viewed((source.channels, positions)), out.viewed((out.channels, positions))
    result = Result(to, e.rounded(op, layer_rounding(e, op, w, source)))
    lanes = lanes_for(w, source.high - source.low, positions)
    low = int(w.lows[0])
    varying = bool((w.lows != low).any())
    one = three((1,))
    e.call(
        "conv",
        op,
        (flat,),
        (to,),
        scratch=4 * w.chunks * w.chunk,
        macs=w.values.size * positions,
        **{"from": flat, "size": three((positions,)), "out": three((positions,)), "kernel": one, "stride": one},
        **{"dilation": one, "before": three((0,), 0), "groups": 1, "inputs": flat.channels, "outputs": to.channels},
        **{"chunks": w.chunks, "chunk": w.chunk, "row": w.row, "run": lanes.run},
        **{"lanes": lanes.count, "zeros": _zeros(source), "block": 1},
        low=0 if varying else low,
        step=w.step,
        lows=Table("int16_t", w.lows) if varying else None,
        weights=Table("uint8_t", packed(w)),
        dot=(lanes.count, lanes.bits, w.bits),
        results=[result],
        count=1,
    )
    return moved_to(e, op, out, (*range(1, rank), 0))


def add(e: CEmitter, op: Add) -> Tensor:
    if op in e.fused:
        return weighted(e, op)
    a, b = (e.value(i) for i in op.inputs)
    out = e.new(op)
    _two(e, op, a, b, out, sum=_sum_of(e, op, op.inputs[0]))
    return out


def mul(e: CEmitter, op: Mul) -> Tensor:
    """ValueError: of what is no code."""
    if not op.of_codes or op.grid is None:
        raise ValueError(f"{op.name}: {op.WORD} is computed in float, which the format c has not; {ON_A_GRID}")
    a, b = (e.value(i) for i in op.inputs)
    out, unit = e.new(op), op.unit.numpy()
    products = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    first, last = (np.asarray([end]) for end in (min(products), max(products)))

    def twin(sums: np.ndarray) -> np.ndarray:
        return sums.astype(np.float32) * unit

    how = rounding(twin, np.asarray([float(unit)]), first, last, op.grid.low, op.grid.high, np.zeros(1, np.int64))
    _two(e, op, a, b, out, a_low=a.low, b_low=b.low, rounding=e.rounded(op, how))
    return out


def _two(e: CEmitter, op: Operation, a: Tensor, b: Tensor, out: Tensor, **fields: Any) -> None:
    a, b = (_broadcast(e, op, t, out) for t in (a, b))
    places = {f"{name}_position": int(t.positions > 1) for name, t in (("a", a), ("b", b))}
    places |= {f"{name}_channel": int(t.channels > 1) for name, t in (("a", a), ("b", b))}
    whole = tuple((t, out) for t in (a, b) if t.shape == out.shape)
    sizes = {"positions": out.positions, "channels": out.channels}
    kernel = "add" if "sum" in fields else "mul"
    e.call(kernel, op, (a, b), (out,), in_place=whole, a=a, b=b, to=out, **sizes, **places, **fields)


def _broadcast(e: CEmitter, op: Operation, source: Tensor, out: Tensor) -> Tensor:
    """`source`, with one position or one channel alone at most, else repeated to the shape of `out`."""
    shape = source.shape
    if len(shape) != len(out.shape):
        shape = (*[1] * (len(out.shape) - len(shape)), *shape)
    positions = int(np.prod(shape[1:]))
    if source.shape == shape and positions in (1, out.positions) and shape[0] in (1, out.channels):
        return source
    steps, step = [0] * len(shape), 1
    for d in reversed(range(len(shape))):
        steps[d] = 0 if shape[d] == 1 else step
        step *= shape[d]
    whole = copy_like(source, out.shape)
    moved(e, op, source, whole, list(zip(out.shape, steps, strict=True)))
    return whole


def _sum_of(e: CEmitter, op: Add, first: Operation) -> Sum:
    """Of the addends as stored, `first` before the other."""
    second = next((i for i in op.inputs if i is not first), first)
    grids = [i.grid for i in (first, second)]
    if op.grid is not None and all(g is not None for g in grids):
        units = [np.float32(g.step) / np.float32(op.grid.step) for g in grids if g is not None]
        ends = tuple((g.low, g.high) for g in (*grids, op.grid) if g is not None)
        coded = code_sum((units[0], units[1]), ends)
        if coded.unequal:
            e.unequal[op.name] = e.unequal.get(op.name, 0) + coded.unequal
        return coded
    if op.grid is not None:
        raise ValueError(f"{op.name}: an addition of float values to codes has no form in the format c; {ON_A_GRID}")
    units = [e.word if g is None else g.step for g in grids]
    return fixed_sum((units[0], units[1]), tuple(0 if g is None else g.low for g in grids), e.word)  # type: ignore[arg-type]
