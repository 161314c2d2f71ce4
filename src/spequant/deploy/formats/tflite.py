"""The integer program for LiteRT and TensorFlow Lite Micro: int8 operators on codes, channels last.

How codes lie in tensors: `tflite_emitter.py`; layers: `tflite_layers.py`; why two engines that round in two ways give
the same codes: `requantization.py`; the file: `tflite_file.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from spequant.deploy.code_graphs import CodedGraph, CodeGraphs
from spequant.deploy.cost import program_costs
from spequant.deploy.formats.format import Draft, ProgramFormat
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.operations import (
    Add,
    Affine,
    Amax,
    AvgPool,
    Clamp,
    Concat,
    Curve,
    Divide,
    Flatten,
    FloatLayer,
    Function,
    Input,
    MaxPool,
    Mean,
    Mul,
    Operation,
    Pad,
    PixelShuffle,
    PRelu,
    Quantize,
    Repeat,
    Reshape,
    Sigmoid,
    Slice,
    Subtract,
    Transpose,
    Weighted,
)
from spequant.deploy.program import Program
from spequant.deploy.requantization import sum_scale
from spequant.deploy.tflite_emitter import NONE, RELU, TfliteEmitter, TfliteWriters, channels_last, clip, end_shape
from spequant.deploy.tflite_file import metadata, read_head, read_tflite, with_labels, write_tflite
from spequant.deploy.tflite_graph import FLOAT, INT8, UINT8
from spequant.deploy.tflite_layers import float_layer, weighted


def _quantize(e: TfliteEmitter, op: Quantize) -> int:
    """x * rate, as fake quantization has it: x / step differs in its last bit."""
    assert op.grid is not None
    inputs = [e.value(op.inputs[0]), e.number(op, op.grid.rate)]
    return e.rounded(op, e.graph.node("MUL", inputs, e.like(op), fusedActivationFunction=e.least(op)))


def _add(e: TfliteEmitter, op: Add) -> int:
    none = e.activation(NONE)
    if op.grid is None:
        return e.graph.node("ADD", [e.value(i) for i in op.inputs], e.like(op), fusedActivationFunction=none)
    how = clip(op.grid, e.zero[op])
    fused = how.activation if how.activation in (NONE, RELU) else NONE
    inputs, (a, b) = [e.near_step(i) for i in op.inputs], (i.grid for i in op.inputs)
    assert a is not None and b is not None
    first, second = (e.graph.scale(tensor) for tensor in inputs)
    scale, e.unequal[op] = sum_scale((a, b, op.grid), (first, second))
    out = e.codes(op, scale)
    e.graph.node("ADD", inputs, out, fusedActivationFunction=e.activation(fused))
    if how.activation is None:
        return e.clipped(op, out)
    return out if fused == how.activation else e.renamed(op, out, how.unit, how.activation)


def _affine(e: TfliteEmitter, op: Affine) -> int:
    none = e.activation(NONE)
    scaled = [*e.sources(op), e.number(op, op.factor.numpy())]
    moved = [e.graph.node("MUL", scaled, e.like(op), fusedActivationFunction=none), e.number(op, op.shift.numpy())]
    return e.graph.node("ADD", moved, e.like(op), fusedActivationFunction=none)


def _mul(e: TfliteEmitter, op: Mul) -> int:
    return e.graph.node("MUL", e.sources(op), e.like(op), fusedActivationFunction=e.activation(NONE))


def _clamp(e: TfliteEmitter, op: Clamp) -> int:
    (source,) = e.sources(op)
    if (op.low, op.high) == (0.0, float("inf")):
        return e.graph.node("RELU", [source], e.like(op))
    ends = (end if np.isfinite(end) else None for end in (op.low, op.high))
    return e.between(op, source, *ends)


def _pool(e: TfliteEmitter, op: MaxPool | Amax, source: int, kernel: Sequence[int], stride: Sequence[int]) -> int:
    height, width = ((n - k) // s + 1 for n, k, s in zip(e.graph.shape(source)[1:3], kernel, stride, strict=True))
    window = {"filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": stride[0], "strideW": stride[1]}
    options = {**window, "padding": e.graph.schema.Padding.VALID, "fusedActivationFunction": e.activation(NONE)}
    out = e.like(op, [1, height, width, e.graph.shape(source)[-1]], source)
    return e.graph.node("MAX_POOL_2D", [source], out, **options)


def _max_pool(e: TfliteEmitter, op: MaxPool) -> int:
    (source,) = e.sources(op)
    above_zero = op.grid is not None and op.grid.low >= 0
    source = e.padded(op, source, op.padding, lowest=not above_zero)
    return _pool(e, op, source, op.kernel, op.stride)


def _amax(e: TfliteEmitter, op: Amax) -> int:
    (source,) = e.sources(op)
    out = _pool(e, op, source, e.graph.shape(source)[1:3], (1, 1))
    return out if op.keep else e.reshaped(op, out, op.shape)


def _mean(e: TfliteEmitter, op: Mean) -> int:
    axes = e.graph.constant(op.name, np.asarray([1, 2], np.int32))
    return e.graph.node("MEAN", [*e.sources(op), axes], e.like(op), keepDims=op.keep)


def _flatten(e: TfliteEmitter, op: Flatten) -> int:
    """In torch's order: channels first."""
    (source,) = e.sources(op)
    *positions, channels = e.graph.shape(source)[1:]
    if channels > 1 and int(np.prod(positions)) > 1:
        order = e.graph.constant(op.name, np.asarray([0, 3, 1, 2], np.int32))
        out = e.like(op, [1, channels, *positions], source)
        source = e.graph.node("TRANSPOSE", [source, order], out)
    return e.reshaped(op, source, op.shape)


def _concat(e: TfliteEmitter, op: Concat) -> int:
    inputs = [e.value(i) if op.grid is None else e.at_step(i) for i in op.inputs]
    axis = len(e.graph.shape(inputs[0])) - 1
    none = e.activation(NONE)
    return e.graph.node("CONCATENATION", inputs, e.like(op, None, inputs[0]), axis=axis, fusedActivationFunction=none)


WRITERS: TfliteWriters = {
    Input: lambda e, op: e.tensors[op],
    Quantize: _quantize,
    Weighted: weighted,
    FloatLayer: float_layer,
    Affine: _affine,
    Add: _add,
    Mul: _mul,
    Clamp: _clamp,
    Sigmoid: lambda e, op: e.graph.node("LOGISTIC", e.sources(op), e.like(op)),
    Mean: _mean,
    Amax: _amax,
    MaxPool: _max_pool,
    Flatten: _flatten,
    Concat: _concat,
}


def _entered(e: TfliteEmitter, op: Operation, end: int) -> int:
    """An input of the graph, of `end_shape`, as the graph has it."""
    return e.reshaped(op, end, channels_last(op.shape)) if len(op.shape) == 3 else end


def _left(e: TfliteEmitter, op: Operation, tensor: int) -> int:
    """A tensor of the graph as an output of it."""
    return e.reshaped(op, tensor, end_shape(op.shape)) if len(op.shape) == 3 else tensor


def _normalised(e: TfliteEmitter, op: Operation, pixels: int, preprocessing: Preprocessing) -> int:
    """uint8 images scaled and normalised, in fp32 and in the order of `inputs.as_batches`."""
    shape = e.graph.shape(pixels)
    codes = e.graph.tensor(op.name, shape, INT8, 1.0, -128)
    x = e.graph.node("DEQUANTIZE", [e.graph.node("QUANTIZE", [pixels], codes)], e.like(op, shape))
    mean, std = (np.asarray(v, np.float32) for v in preprocessing)
    for kind, number in (("DIV", np.float32(255)), ("SUB", mean), ("DIV", std)):
        inputs = [x, e.number(op, np.atleast_1d(number))]
        x = e.graph.node(kind, inputs, e.like(op, shape), fusedActivationFunction=e.activation(NONE))
    return x


def tflite_graph(
    program: Program,
    *,
    preprocessing: Preprocessing | None = None,
    taps: Sequence[Operation] = (),
    about: Mapping[str, Any] | None = None,
    int4: bool = False,
) -> CodedGraph:
    """The .tflite model of `program`: input "input", output "output", for one sample, which the engine may change.

    Both are channels last: (1, height, width, channels) of what torch has as (1, channels, height, width).

    Args:
        program: what `lower` makes.
        preprocessing: (mean, std) per channel, of images scaled to [0, 1]: the input is then uint8 images.
        taps: operations whose stored codes are outputs, too, "tap0", "tap1" ...
        about: JSON that `read_tflite` gives back.
        int4: whether weights of convolutions that fit 4 bits are packed, two in a byte.

    Raises:
        ModuleNotFoundError: the extra `tflite` is not installed.
        ValueError: a layer that has no form in it, by name.
    """
    if len(program.outputs) > 1:
        raise ValueError(f"the network has the outputs {', '.join(program.outputs)}; a file of --to tflite has one")
    e = TfliteEmitter(WRITERS, program.ops, program.output, int4)
    source = program.input
    shape, kind = end_shape(source.shape), FLOAT if preprocessing is None else UINT8
    end = e.graph.tensor("input", shape, kind, None if preprocessing is None else 1.0)
    x = end if preprocessing is None else _normalised(e, source, end, preprocessing)
    e.tensors[source] = _entered(e, source, x)
    for op in program.ops[1:]:
        e.emit(op)
    outputs = {"output": _left(e, program.output, e.value(program.output))}
    outputs |= {f"tap{i}": _left(e, op, e.tensors[op]) for i, op in enumerate(taps)}
    head = {
        "kind": "tflite4" if int4 else "tflite",
        "preprocessing": preprocessing,
        "act_bits": program.act_bits,
        "unequal": e.unequal_by_name(),
    }
    head["layers"] = [asdict(cost) for cost in program_costs(program)]
    model = e.graph.model({"input": end}, outputs, metadata(head, about, source.shape))
    return CodedGraph(with_labels(model, about), e.zero, INT8)


def op_graph(op: Operation, int4: bool = False) -> CodedGraph:
    """One operation on stored codes given as inputs "in0", "in1" ...: what an engine makes of it, forced to these."""
    e = TfliteEmitter(WRITERS, [*dict.fromkeys(op.inputs), op], int4=int4)
    inputs = {}
    for i, source in enumerate(dict.fromkeys(op.inputs)):
        shape = end_shape(source.shape)
        if source.grid is None:
            end = e.graph.tensor("in", shape, FLOAT)
        else:
            unit = 1 if isinstance(source, Quantize) else source.grid.step  # as `_quantize` has it
            end = e.codes(source, np.float32(unit), shape)
        inputs[f"in{i}"], e.tensors[source] = end, _entered(e, source, end)
    e.emit(op)
    return CodedGraph(e.graph.model(inputs, {"output": _left(e, op, e.tensors[op])}, {}), e.zero, INT8)


UNWRITTEN = (AvgPool, Curve, Divide, Function, PRelu, Pad, PixelShuffle, Repeat, Reshape, Slice, Subtract, Transpose)
"""Operations that no writer of this format is there for yet."""


class Tflite(ProgramFormat):
    """LiteRT's files."""

    name, suffix, extension = "tflite", ".tflite", ".tflite"
    help = "int8 graph for phones and microcontrollers"
    engines = "litert", "tflm"
    runs_in = "LiteRT, TensorFlow Lite Micro"
    preprocessing = True
    graphs = CodeGraphs(tflite_graph, op_graph)
    writers = WRITERS
    refused = UNWRITTEN
    int4: ClassVar[bool] = False
    """whether weights that fit 4 bits are packed"""

    def content(self, program: Program, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None) -> Any:
        return tflite_graph(program, preprocessing=preprocessing, about=about, int4=self.int4).data

    def write(self, draft: Draft, path: Path) -> None:
        write_tflite(draft.content, path)

    def recognised(self, path: Path) -> bool:
        return read_head(path)["kind"] == self.name

    def open(self, path: Path, network: nn.Module | None) -> Loaded:
        return read_tflite(path, self.name, self.engines)


class TfliteInt4(Tflite):
    """The same files, smaller; on phones slower."""

    name, suffix = "tflite4", ".int4.tflite"
    help = "the same, weights that fit 4 bits in half a byte"
    graphs = CodeGraphs(partial(tflite_graph, int4=True), partial(op_graph, int4=True))
    int4 = True
