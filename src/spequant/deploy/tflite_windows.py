"""What takes several positions together, in a .tflite graph: pooling, means, maxima.

Means of codes are convolutions with equal weights, whose sums `requantization.py` rounds as the twin; where windows
count alike in number only, or dimensions are no positions, whole numbers are summed in float, exactly.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from spequant.deploy.operations import Amax, AvgPool, MaxPool, Mean, Operation
from spequant.deploy.operations.positions import unit
from spequant.deploy.operations.windows import padded, sides
from spequant.deploy.tflite_emitter import NONE, Ends, TfliteEmitter, TfliteWriters, ends_of, is_same
from spequant.deploy.tflite_layers import equal_sums
from spequant.deploy.tflite_nodes import INT8
from spequant.deploy.tflite_order import last, place


def _window(op: MaxPool | AvgPool) -> tuple[list[int], list[int], Ends]:
    """(kernel, stride, padding) over two positions. ValueError: there are three."""
    spatial = len(op.kernel)
    if spatial > 2:
        raise ValueError(f"{op.name}: the format tflite has no {op.WORD} over {spatial} dimensions; --to onnx takes it")
    row = [1] * (2 - spatial)
    return [*row, *op.kernel], [*row, *op.stride], ends_of(op.padding, spatial)


def _pool(
    e: TfliteEmitter, op: Operation, kind: str, source: int, kernel: Sequence[int], stride: Sequence[int], same: bool
) -> int:
    sizes = e.graph.shape(source)[1:3]
    ends = [-(-n // s) if same else (n - k) // s + 1 for n, k, s in zip(sizes, kernel, stride, strict=True)]
    options = {"filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": stride[0], "strideW": stride[1]}
    options["padding"] = e.graph.schema.Padding.SAME if same else e.graph.schema.Padding.VALID
    out = e.like(op, [1, *ends, e.graph.shape(source)[-1]], source)
    return e.graph.node(kind, [source], out, fusedActivationFunction=e.activation(NONE), **options)


def _max_pool(e: TfliteEmitter, op: MaxPool) -> int:
    """Padding never wins: SAME, or around it the lowest number, which on codes from zero on is zero."""
    (source,), (kernel, stride, ends) = e.sources(op), _window(op)
    same = is_same(ends, e.graph.shape(source)[1:3], kernel, stride)
    if not same:
        lowest = -128 if e.graph.kind(source) == INT8 else float(np.finfo(np.float32).min)
        above_zero = op.grid is not None and op.grid.low >= 0
        source = e.padded(op, source, ends, None if above_zero else lowest)
    return _pool(e, op, "MAX_POOL_2D", source, kernel, stride, same)


def _amax(e: TfliteEmitter, op: Amax) -> int:
    source, shape = e.sources(op)[0], op.inputs[0].shape
    if op.dims:
        return _reduced(e, op, "REDUCE_MAX", source, op.dims)
    out = _pool(e, op, "MAX_POOL_2D", source, e.graph.shape(source)[1:3], (1, 1), False)
    return e.moved(op, out, [*shape[:2], *[1] * (len(shape) - 2)], last(len(shape)))


def _reduced(e: TfliteEmitter, op: Amax | Mean, kind: str, source: int, dims: Sequence[int]) -> int:
    """`source`, channels last, with `dims` taken together."""
    shape = op.inputs[0].shape
    places = [place(last(len(shape)), d) for d in dims]
    axes = e.graph.constant(op.name, np.asarray(places, np.int32))
    kept = [1 if i in places else n for i, n in enumerate(e.graph.shape(source))]
    out = e.graph.node(kind, [source, axes], e.like(op, kept, source), keepDims=True)
    return e.moved(op, out, [1 if d in dims else n for d, n in enumerate(shape)], last(len(shape)))


def _mean(e: TfliteEmitter, op: Mean) -> int:
    (source,) = op.inputs
    shape, dims = source.shape, op.dims or tuple(range(2, len(source.shape)))
    if op.grid is None:
        return _reduced(e, op, "MEAN", e.value(source), dims)
    factor = unit(op) / math.prod(shape[d] for d in dims)
    if op.dims or len(shape) not in (3, 4):
        sums = _reduced(e, op, "SUM", e.whole(source), dims)
        return _scaled(e, op, sums, factor.numpy())
    ones = (1,) * (len(shape) - 2)
    kept = *shape[:2], *ones
    out = equal_sums(e, op, factor, kept, (shape[2:], ones, (0,) * len(ones)))
    return e.moved(op, out, kept, last(len(shape)))


def _scaled(e: TfliteEmitter, op: Operation, sums: int, factor: np.ndarray) -> int:
    """Codes of `op`: whole numbers in float times `factor`, rounded."""
    inputs, out = [sums, e.number(op, factor.reshape(factor.shape or 1))], e.like(op, e.graph.shape(sums))
    return e.rounded(op, e.graph.node("MUL", inputs, out, fusedActivationFunction=e.least(op)))


def _avg_pool(e: TfliteEmitter, op: AvgPool) -> int:
    kernel, stride, ends = _window(op)
    counts = _counts(op)
    if op.grid is None:
        means = _pool(e, op, "AVERAGE_POOL_2D", e.padded(op, e.value(op.inputs[0]), ends), kernel, stride, False)
        if (counts == math.prod(kernel)).all():
            return means
        inputs = [means, e.number(op, math.prod(kernel) / counts)]
        return e.graph.node("MUL", inputs, e.like(op), fusedActivationFunction=e.activation(NONE))
    if (counts == counts.flat[0]).all():
        factor = unit(op) / torch.tensor(float(counts.flat[0]))
        return equal_sums(e, op, factor, op.shape, (op.kernel, op.stride, op.padding))
    source = e.padded(op, e.whole(op.inputs[0]), ends)
    channels = e.graph.shape(source)[-1]
    constants = np.ones((1, *kernel, channels), np.float32), np.zeros(channels, np.float32)
    options = {
        "padding": e.graph.schema.Padding.VALID,
        "depthMultiplier": 1,
        "fusedActivationFunction": e.activation(NONE),
    }
    options |= {"strideH": stride[0], "strideW": stride[1], "dilationHFactor": 1, "dilationWFactor": 1}
    inputs = [source, *(e.graph.constant(op.name, c) for c in constants)]
    sums = e.graph.node("DEPTHWISE_CONV_2D", inputs, e.like(op), **options)
    return _scaled(e, op, sums, (unit(op) / torch.from_numpy(counts)).numpy())


def _counts(op: AvgPool) -> np.ndarray:
    """How many numbers each window counts: fp32, (1, height, width, 1)."""
    before, after = sides(op.padding, len(op.kernel))
    ones = padded(torch.ones(1, 1, *op.inputs[0].shape[2:]), (*before, *after), float(op.counts_padding))
    for dim, (kernel, stride) in enumerate(zip(op.kernel, op.stride, strict=True), start=2):
        ones = ones.unfold(dim, kernel, stride).sum(-1)
    return ones.view(1, *[1] * (4 - ones.dim()), *ones.shape[2:], 1).numpy()


WINDOW_WRITERS: TfliteWriters = {MaxPool: _max_pool, Amax: _amax, Mean: _mean, AvgPool: _avg_pool}
