"""Convolutions and linear layers in a .tflite graph: on int8 codes, with int16 results at the end, or in float."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from spequant.deploy.integers import SUM, largest_sums
from spequant.deploy.operations import FloatLayer, Quantize, Weighted
from spequant.deploy.requantization import ENGINES, requantization, steps
from spequant.deploy.tflite_emitter import NONE, TfliteEmitter, clip, spread_of
from spequant.deploy.tflite_graph import INT16

LARGEST = 2**15 - 1  # of an int16
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
        return _at_the_end(e, op) if op is e.output and not op.spatial else _in_float(e, op)
    source = e.tensors[op.inputs[0]]
    how = clip(op.grid, e.zero[op])
    factor = op.step * form.scale / op.grid.step
    ends = op.source.low, op.source.high
    twin = steps(form, factor, ends, op.grid.low, op.grid.high)
    found = requantization(twin, e.graph.scale(source), how.unit)
    times = min(spread_of(op.source), SUM // form.bound)
    if found.unequal["tflm"] and times > 1:
        source = e.spread(op.inputs[0], times)
        found = requantization(twin.times(times), e.graph.scale(source), how.unit)
    elif found.unequal["tflm"] and _may_be_float(op):
        return _of_float_sums(e, op, factor)
    e.unequal[op] = found.unequal
    out = e.codes(op, how.unit)
    constants = form.weight.numpy(), found.scale, found.bias
    _product(e, op, source, constants, out, e.activation(how.activation or NONE))
    return out if how.activation else e.clipped(op, out)


def float_layer(e: TfliteEmitter, op: FloatLayer) -> int:
    constants = (op.weight.detach().numpy(), None, op.bias.detach().numpy())
    return _product(e, op, e.value(op.inputs[0]), constants, e.like(op), e.activation(NONE))


def _may_be_float(op: Weighted) -> bool:
    """Whether it is a first layer, its input float until there, so small that float sums cost little."""
    products = math.prod(op.shape) * math.prod(op.weight.shape[1:])
    return isinstance(op.inputs[0], Quantize) and products <= FEW_PRODUCTS and op.integers.exact_in_fp32


def _of_float_sums(e: TfliteEmitter, op: Weighted, factor: Tensor) -> int:
    """Sums in units of output codes, in float, then rounded: as the twin's but for the last bits of a sum."""
    form = op.integers
    weight, bias = form.weight * _columns(factor, form.weight), form.bias * factor
    e.unequal[op] = dict.fromkeys(ENGINES, 0)
    constants = (weight.numpy(), None, bias.numpy())
    return e.rounded(op, _product(e, op, e.whole(op.inputs[0]), constants, e.like(op), e.least(op)))


def _in_float(e: TfliteEmitter, op: Weighted) -> int:
    form = op.integers
    weight = form.weight.float() * _columns(form.scale, form.weight)
    constants = (weight.numpy(), None, (form.bias.double() * (op.step * form.scale).double()).float().numpy())
    return _product(e, op, e.value(op.inputs[0]), constants, e.like(op), e.activation(NONE))


def _at_the_end(e: TfliteEmitter, op: Weighted) -> int:
    """A linear layer whose result leaves the graph: in int16, whose ends its sums cannot pass, then in float."""
    form, source = op.integers, e.tensors[op.inputs[0]]
    unit, units = e.graph.scale(source), op.step * form.scale
    largest = largest_sums(form.weight, op.source.low, op.source.high) + form.bias.abs()
    step = np.float32(float((largest.double() * units.double()).max()) / LARGEST)
    codes = e.graph.tensor(op.name, e.graph.shape(source), INT16, unit)
    e.graph.node("QUANTIZE", [source], codes)
    scale = units.numpy() / unit
    scale = scale[:1] if bool((scale == scale[0]).all()) else scale
    out = e.graph.tensor(op.name, list(op.shape), INT16, step or np.float32(1))
    _product(e, op, codes, (form.weight.numpy(), scale, form.bias.numpy().astype(np.int64)), out, e.activation(NONE))
    return e.graph.node("DEQUANTIZE", [out], e.like(op))


def _product(
    e: TfliteEmitter, op: Weighted | FloatLayer, source: int, constants: tuple[Any, Any, Any], out: int, activation: int
) -> int:
    """constants: (weight as torch has it, its scale per output or None, bias)."""
    weight, scale, bias = constants
    name, fused = op.name, {"fusedActivationFunction": activation}
    bias = e.graph.constant(f"{name}.bias", bias, None if scale is None else e.graph.scale(source) * scale)
    if not op.spatial:
        weight = e.graph.constant(f"{name}.weight", weight, scale)
        return e.graph.node("FULLY_CONNECTED", [source, weight, bias], out, **fused)
    if op.spatial > 2:
        raise ValueError(f"{name}: the format tflite has no convolution over {op.spatial} dimensions")
    row = (1,) if op.spatial == 1 else ()
    kernel, stride, dilation = ((*row, *v) for v in (weight.shape[2:], op.stride, op.dilation))
    weight = weight.reshape(*weight.shape[:2], *kernel)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = (*(0 for _ in row), *op.padding)
    same = set(stride) == {1} and [2 * p for p in padding] == spans and any(padding)
    source = source if same else e.padded(op, source, padding)
    fused |= {"padding": e.graph.schema.Padding.SAME if same else e.graph.schema.Padding.VALID}
    fused |= dict(zip(("strideH", "strideW", "dilationHFactor", "dilationWFactor"), (*stride, *dilation), strict=True))
    channels = e.graph.shape(source)[-1]
    if op.groups == channels > 1 and weight.shape[1] == 1:
        weight = e.graph.constant(f"{name}.weight", weight.transpose(1, 2, 3, 0), scale, axis=3)
        fused["depthMultiplier"] = op.weight.shape[0] // channels
        return e.graph.node("DEPTHWISE_CONV_2D", [source, weight, bias], out, **fused)
    weight = e.graph.constant(f"{name}.weight", weight.transpose(0, 2, 3, 1), scale)
    return e.graph.node("CONV_2D", [source, weight, bias], out, **fused)


def _columns(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))
