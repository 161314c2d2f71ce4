"""Convolutions and linear layers in a .tflite graph: on int8 codes, with int16 results at the end, or in float."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spequant.deploy.integers import INT16_MAX, INT32_MAX, Integers, largest_sums
from spequant.deploy.operations import FloatLayer, Operation, Quantize, Weighted
from spequant.deploy.requantization import (
    Requantization,
    factor_of,
    requantization,
    rounding_steps,
    spread_of,
)
from spequant.deploy.tflite_emitter import NONE, TfliteEmitter, ends_of, is_same, nhwc
from spequant.deploy.tflite_nodes import INT16
from spequant.deploy.tflite_order import laid

ONES = 127
"""Weights of sums: sums lie so many units apart."""
INT4 = 7  # the largest, of either sign
FEW_PRODUCTS = 2**20


def weighted(e: TfliteEmitter, op: Weighted) -> int:
    """On codes; to codes, or where no quantizer reads its sums to float. ValueError: a kernel that the engines lack."""
    form = op.integers
    if bool((form.scale < 0).any()):
        raise ValueError(
            f"{op.name}: a weight code of -128 meets a negative factor of batch norm, and 128 is no int8: the format "
            "tflite has no such layer; train its weights on a symmetric grid (SAWB, or LSQ with fewer bits)"
        )
    if op.grid is None:
        return _arranged(e, op, _at_the_end(e, op) if op in e.outputs and not op.spatial else _in_float(e, op))
    return _arranged(e, op, _packed(e, op) or _on_codes(e, op))


def _in_rows(op: Weighted | FloatLayer) -> bool:
    """Whether it is a linear layer on more than two dimensions: on rows, all others together."""
    return not op.spatial and len(op.shape) > 2


def _source(e: TfliteEmitter, op: Weighted | FloatLayer, values: bool = False) -> int:
    """What it reads, codes or values, as its operator takes it."""
    (source,), read = op.inputs, e.value if values else e.stored
    if not _in_rows(op):
        return read(source)
    rows = [int(np.prod(source.shape[:-1])), source.shape[-1]]
    return e.reshaped(op, read(source, tuple(range(len(source.shape)))), rows)


def _shape(op: Weighted | FloatLayer) -> list[int]:
    """Of what its operator gives."""
    return [int(np.prod(op.shape[:-1])), op.shape[-1]] if _in_rows(op) else nhwc(op.shape)


def _arranged(e: TfliteEmitter, op: Weighted | FloatLayer, out: int) -> int:
    """What its operator gave, in its own shape."""
    if not _in_rows(op):
        return out
    e.orders[op] = tuple(range(len(op.shape)))
    return e.reshaped(op, out, laid(op.shape, e.orders[op]))


def _on_codes(e: TfliteEmitter, op: Weighted) -> int:
    assert op.grid is not None
    unit, source = e.clip(op).unit, _source(e, op)
    rounding = e.requantized(op, e.graph.scale(source), unit)
    times = spread_of(op)
    if rounding.unequal["tflm"] and times > 1:
        source = e.spread(op.inputs[0], source, times)
        rounding = e.requantized(op, e.graph.scale(source), unit, times)
    if rounding.unequal["tflm"] and _may_be_float(op):
        return _of_float_sums(e, op)
    return _layer(e, op, source, op.integers.weight.numpy(), rounding)


def equal_sums(
    e: TfliteEmitter, op: Operation, factor: Tensor, shape: Sequence[int], window: Sequence[Sequence[int]]
) -> int:
    """Codes of `op`, of `shape`: sums of the codes in each window of its input, times `factor`, 0-dim fp32. window:
    kernel, stride, padding. A convolution by channels, with equal weights."""
    assert op.grid is not None
    (source,), (kernel, stride, padding) = op.inputs, map(tuple, window)
    channels, ones = source.shape[1], torch.ones(source.shape[1], 1, *kernel, dtype=torch.int8)
    none = torch.zeros(channels)
    parts = ones, none, none, stride, padding, (1,) * len(kernel)
    conv = Weighted(op.name, (source,), op.grid, tuple(shape), *parts, channels)
    form = Integers(ones[:1], none[:1].int(), none[:1])
    twin = rounding_steps(form, factor.view(1), (conv.source.low, conv.source.high), op.grid.low, op.grid.high)
    times = min(ONES, INT32_MAX // form.bound)
    e.zero[conv] = e.zero[op]
    rounding = requantization(twin.times(times), e.graph.scale(e.stored(source)), e.clip(conv).unit)
    scale, bias = (np.repeat(v, channels) for v in (rounding.scale, rounding.bias))
    return _layer(e, conv, e.stored(source), times * ones.numpy(), Requantization(scale, bias, rounding.unequal))


def _packed(e: TfliteEmitter, op: Weighted) -> int | None:
    """The same with weights of 4 bits, two in a byte; None: not asked for, they do not fit, or a code would change. The
    input is spread, or the unit of sums, and of the bias, would be coarse."""
    assert op.grid is not None
    weight = op.integers.weight.numpy().astype(np.int64)
    divisor = max(1, int(np.gcd.reduce(weight, axis=None)))
    weight = weight // divisor
    factor = INT4 // max(1, int(np.abs(weight).max()))
    times = spread_of(op)
    if not (e.micro and op.spatial and factor):
        return None
    source = e.spread(op.inputs[0], e.stored(op.inputs[0]), times) if times > 1 else e.stored(op.inputs[0])
    unit = e.clip(op).unit
    rounding = e.requantized(op, e.graph.scale(source), unit, times * factor, divisor)
    if any(rounding.unequal.values()):  # LiteRT has kernels of its own for these, which round as the other engine's do
        return None
    return _layer(e, op, source, (weight * factor).astype(np.int8), rounding, int4=True)


def _layer(
    e: TfliteEmitter, op: Weighted, source: int, weight: np.ndarray, rounding: Requantization, int4: bool = False
) -> int:
    assert op.grid is not None
    how = e.clip(op)
    e.unequal[op] = rounding.unequal
    constants, out = (weight, rounding.scale, rounding.bias), e.unclipped(op, how, how.unit, _shape(op))
    _product(e, op, source, constants, out, e.activation(how.activation or NONE), int4)
    return e.clipped(op, out, how)


def float_layer(e: TfliteEmitter, op: FloatLayer) -> int:
    constants = (op.weight.detach().numpy(), None, op.bias.detach().numpy())
    out = _product(e, op, _source(e, op, values=True), constants, e.like(op, _shape(op)), e.activation(NONE))
    return _arranged(e, op, out)


def _may_be_float(op: Weighted) -> bool:
    """Whether it is a first layer, its input float until there, so small that float sums cost little."""
    products = math.prod(op.shape) * math.prod(op.weight.shape[1:])
    return (
        isinstance(op.inputs[0], Quantize)
        and not _in_rows(op)
        and products <= FEW_PRODUCTS
        and op.integers.exact_in_fp32
    )


def _of_float_sums(e: TfliteEmitter, op: Weighted) -> int:
    """Sums of whole numbers in float, which are exact, then as the twin has it: times the factor, and rounded."""
    constants = (op.integers.weight.float().numpy(), None, op.integers.bias.float().numpy())
    sums = _product(e, op, e.whole(op.inputs[0]), constants, e.like(op), e.activation(NONE))
    rows = e.graph.shape(sums)[2:-1]  # XNNPACK takes a row at once faster than each position alone
    inputs = [sums, e.number(op, np.tile(factor_of(op).numpy(), (*rows, 1)))]
    return e.rounded(op, e.graph.node("MUL", inputs, e.like(op), fusedActivationFunction=e.least(op)))


def _in_float(e: TfliteEmitter, op: Weighted) -> int:
    form = op.integers
    weight = form.weight.float() * _columns(form.scale, form.weight)
    constants = (weight.numpy(), None, (form.bias.double() * (op.step * form.scale).double()).float().numpy())
    return _product(e, op, _source(e, op, values=True), constants, e.like(op, _shape(op)), e.activation(NONE))


def _at_the_end(e: TfliteEmitter, op: Weighted) -> int:
    """A linear layer whose result leaves the graph: in int16, whose ends its sums cannot pass, then in float."""
    form, source = op.integers, _source(e, op)
    unit, units = e.graph.scale(source), op.step * form.scale
    largest = largest_sums(form.weight, op.source.low, op.source.high) + form.bias.abs()
    step = np.float32(float((largest.double() * units.double()).max()) / INT16_MAX)
    codes = e.graph.tensor(op.name, e.graph.shape(source), INT16, unit)
    e.graph.node("QUANTIZE", [source], codes)
    scale = units.numpy() / unit
    scale = scale[:1] if bool((scale == scale[0]).all()) else scale
    out = e.graph.tensor(op.name, _shape(op), INT16, step or np.float32(1))
    _product(e, op, codes, (form.weight.numpy(), scale, form.bias.numpy().astype(np.int64)), out, e.activation(NONE))
    return e.graph.node("DEQUANTIZE", [out], e.like(op, _shape(op)))


def _product(
    e: TfliteEmitter,
    op: Weighted | FloatLayer,
    source: int,
    constants: tuple[Any, Any, Any],
    out: int,
    activation: int,
    int4: bool = False,
) -> int:
    """constants: (weight as torch has it, its scale per output or None, bias)."""
    weight, scale, bias = constants
    name, fused = op.name, {"fusedActivationFunction": activation}
    bias = e.graph.constant(f"{name}.bias", bias, None if scale is None else e.graph.scale(source) * scale)
    if not op.spatial:
        weight = e.graph.constant(f"{name}.weight", weight, scale)
        return e.graph.node("FULLY_CONNECTED", [source, weight, bias], out, **fused)
    if op.spatial > 2:
        raise ValueError(
            f"{name}: the format tflite has no convolution over {op.spatial} dimensions; --to onnx takes it"
        )
    row = (1,) if op.spatial == 1 else ()
    kernel, stride, dilation = ((*row, *v) for v in (weight.shape[2:], op.stride, op.dilation))
    weight = weight.reshape(*weight.shape[:2], *kernel)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    ends = ends_of(op.padding, op.spatial)
    same = is_same(ends, e.graph.shape(source)[1:3], spans, stride) and any(map(any, ends))
    source = source if same else e.padded(op, source, ends)
    fused |= {"padding": e.graph.schema.Padding.SAME if same else e.graph.schema.Padding.VALID}
    fused |= dict(zip(("strideH", "strideW", "dilationHFactor", "dilationWFactor"), (*stride, *dilation), strict=True))
    channels = e.graph.shape(source)[-1]
    if op.groups == channels > 1 and weight.shape[1] == 1:
        weight = e.graph.constant(f"{name}.weight", weight.transpose(1, 2, 3, 0), scale, axis=3, int4=int4)
        fused["depthMultiplier"] = op.weight.shape[0] // channels
        return e.graph.node("DEPTHWISE_CONV_2D", [source, weight, bias], out, **fused)
    weight = e.graph.constant(f"{name}.weight", weight.transpose(0, 2, 3, 1), scale, int4=int4)
    return e.graph.node("CONV_2D", [source, weight, bias], out, **fused)


def _columns(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))
