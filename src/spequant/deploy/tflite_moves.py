"""What puts numbers elsewhere and computes none, in a .tflite graph; see `tflite_order.py`."""

from typing import Any

import numpy as np

from spequant.deploy.operations import Concat, Flatten, Operation, Pad, PixelShuffle, Repeat, Reshape, Slice, Transpose
from spequant.deploy.tflite_emitter import NONE, TfliteEmitter, TfliteWriters
from spequant.deploy.tflite_order import laid, last, place

MOST_SLICED = 4
"""Dimensions that STRIDED_SLICE of TensorFlow Lite Micro takes."""


def _reshape(e: TfliteEmitter, op: Reshape | Flatten) -> int:
    source, order = e.as_it_lies(op, op.inputs[0])
    return e.moved(op, source, op.inputs[0].shape, order)


def _transpose(e: TfliteEmitter, op: Transpose) -> int:
    """The same tensor, its dimensions under other names."""
    source, order = e.as_it_lies(op, op.inputs[0])
    e.orders[op] = tuple(op.order.index(d) for d in order)
    return source


def _pixel_shuffle(e: TfliteEmitter, op: PixelShuffle) -> int:
    """Reshaped, its dimensions named anew, and reshaped."""
    (source,) = op.inputs
    apart = Reshape(op.name, (source,), op.grid, (1, *op.apart))
    moved = Transpose(op.name, (apart,), op.grid, tuple(apart.shape[d] for d in op.order), op.order)
    e.tensors[apart] = _reshape(e, apart)
    e.tensors[moved] = _transpose(e, moved)
    return e.moved(op, e.tensors[moved], moved.shape, e.order(moved))


def _slice(e: TfliteEmitter, op: Slice) -> int:
    source, order = e.as_it_lies(op, op.inputs[0])
    rank = len(e.graph.shape(source))
    if rank > MOST_SLICED:
        raise ValueError(
            f"{op.name}: the format tflite slices {MOST_SLICED} dimensions at most, not {rank}; --to onnx takes it"
        )
    starts, stops, steps = [0] * rank, list(e.graph.shape(source)), [1] * rank
    for dim, ends in enumerate(zip(op.start, op.stop, op.step, strict=True), start=1):
        starts[place(order, dim)], stops[place(order, dim)], steps[place(order, dim)] = ends
    inputs = [source, *(e.graph.constant(op.name, np.asarray(v, np.int32)) for v in (starts, stops, steps))]
    e.orders[op] = order
    out = e.like(op, laid(op.shape, order), source)
    return e.graph.node("STRIDED_SLICE", inputs, out, beginMask=1, endMask=1)  # 1: the whole batch, whatever it is


def _concat(e: TfliteEmitter, op: Concat) -> int:
    """In the order in which all inputs lie, or else channels last."""
    if op.grid is not None:
        inputs, order = [e.at_step(i) for i in op.inputs], last(len(op.shape))
    else:
        orders = {e.as_it_lies(op, i)[1] for i in op.inputs}
        order = orders.pop() if len(orders) == 1 else last(len(op.shape))
        inputs = [e.value(i, order) for i in op.inputs]
    e.orders[op] = order
    out = e.like(op, laid(op.shape, order), inputs[0])
    options = {"axis": place(order, op.dim), "fusedActivationFunction": e.activation(NONE)}
    return e.graph.node("CONCATENATION", inputs, out, **options)


def _picked(e: TfliteEmitter, op: Operation, source: int, axis: int, indices: np.ndarray) -> int:
    """The numbers of `source` at `indices` along `axis` of the graph."""
    inputs = [source, e.graph.constant(op.name, indices.astype(np.int32))]
    shape = e.graph.shape(source)
    shape[axis] = len(indices)
    return e.graph.node("GATHER", inputs, e.like(op, shape, source), axis=axis)


MIRRORED: dict[str, Any] = {"reflect": "reflect", "replicate": "edge"}
"""{torch's word for a kind of padding: numpy's}"""


def _pad(e: TfliteEmitter, op: Pad) -> int:
    (source,), order = e.sources(op), last(len(op.shape))
    around = [(0, 0)] * len(e.graph.shape(source))
    for dim, ends in enumerate(zip(op.before, op.after, strict=True), start=1):
        around[place(order, dim)] = ends
    if op.mode == "constant":
        filling = op.filling if op.grid is None else op.filling + e.zero[op]
        return e.padded(op, source, around, filling if op.filling else None)
    for axis, ends in enumerate(around):
        if any(ends):
            indices = np.pad(np.arange(e.graph.shape(source)[axis]), ends, mode=MIRRORED[op.mode])
            source = _picked(e, op, source, axis, indices)
    return source


def _repeat(e: TfliteEmitter, op: Repeat) -> int:
    """Images by RESIZE_NEAREST_NEIGHBOR, where its division in fp32 gives the right place; else by GATHER."""
    (source,), order = e.sources(op), last(len(op.shape))
    times = [1] * len(e.graph.shape(source))
    for dim, number in enumerate(op.times, start=1):
        times[place(order, dim)] = number
    sizes = e.graph.shape(source)
    if len(sizes) == 4 and times[3] == 1 and all(map(_divides, sizes[1:3], times[1:3])):
        result = np.asarray([n * t for n, t in zip(sizes[1:3], times[1:3], strict=True)], np.int32)
        inputs = [source, e.graph.constant(op.name, result)]
        return e.graph.node("RESIZE_NEAREST_NEIGHBOR", inputs, e.like(op, None, source))
    for axis, number in enumerate(times):
        if number > 1:
            source = _picked(e, op, source, axis, np.repeat(np.arange(sizes[axis]), number))
    return source


def _divides(size: int, times: int) -> bool:
    """Whether the fp32 numbers i * (size / (size * times)) are where i / times is."""
    i = np.arange(size * times)
    return bool((np.floor(i.astype(np.float32) * (np.float32(size) / np.float32(size * times))) == i // times).all())


MOVE_WRITERS: TfliteWriters = {
    Reshape: _reshape,
    Flatten: _reshape,
    Transpose: _transpose,
    PixelShuffle: _pixel_shuffle,
    Slice: _slice,
    Concat: _concat,
    Pad: _pad,
    Repeat: _repeat,
}
