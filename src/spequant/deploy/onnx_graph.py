"""ONNX graphs, node by node: what the formats share that write a program so, and how they write operations alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spequant.deploy.onnx_versions import WRITTEN, declare_lowest
from spequant.deploy.operations import (
    Amax,
    AvgPool,
    Clamp,
    Concat,
    Divide,
    Flatten,
    FloatLayer,
    MaxPool,
    Mean,
    Operation,
    Pad,
    PixelShuffle,
    Repeat,
    Reshape,
    Sigmoid,
    Slice,
    Subtract,
    Transpose,
    Weighted,
)
from spequant.deploy.operations.windows import sides
from spequant.deploy.program import Program
from spequant.extras import needs


class Emitter(ABC):
    """Nodes and constants of one graph, operation by operation.

    names: of each operation's result, codes or float. tensors: names of the constants that an operation is read back
    from. writers: how each operation is written. once: equal weights are written once, as of a layer that is called
    several times.
    """

    def __init__(self, writers: "Writers", once: bool = False) -> None:
        self.onnx = needs("onnx", "deploy")
        self.writers, self.once, self.written = writers, once, dict[Any, str]()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names: dict[Operation, str] = {}
        self.tensors: dict[Operation, list[str]] = {}

    def constant(self, value: Any, name: str) -> str:
        array = np.asarray(value, order="C")
        key = (array.dtype.str, array.shape, array.tobytes()) if self.once and array.ndim > 1 else len(self.constants)
        if key in self.written:
            return self.written[key]
        name = self.written[key] = f"{name}.{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def tensor(self, op: Operation, value: Any, name: str) -> str:
        """A constant that `op` can be read back from (`onnx_file.py`)."""
        name = self.constant(value, name)
        self.tensors.setdefault(op, []).append(name)
        return name

    def node(self, kind: str, inputs: Iterable[str], name: str, **attributes: Any) -> str:
        out = f"{name}/{kind}.{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def emit(self, op: Operation) -> None:
        """Add `op`, whose inputs are there."""
        self.names[op] = self.writers[type(op)](self, op)

    @abstractmethod
    def value(self, op: Operation) -> str:
        """The float values of an operation's result."""

    def sources(self, op: Operation) -> list[str]:
        """What `op` reads: codes where its own result is codes, else values."""
        return [self.value(i) if op.grid is None else self.names[i] for i in op.inputs]

    def model(
        self,
        inputs: Sequence[Any],
        outputs: Mapping[str, Any],
        about: Mapping[str, str],
        domains: Mapping[str, int] | None = None,
    ) -> Any:
        """The checked model. outputs: {name in the graph: its value_info}; domains: {of other operators: version}.

        Outputs are called as they are to be: a node that renames them OpenVINO before 2025.1 has no operation for, and
        hls4ml takes for a layer. An input that is an output, too, has no other way.
        """
        helper = self.onnx.helper
        names = {inner: info.name for inner, info in outputs.items()}
        nodes = []
        for info in inputs:
            if info.name in names:
                nodes.append(helper.make_node("Identity", [info.name], [names.pop(info.name)]))
        for node in self.nodes:
            for tensors in (node.input, node.output):
                tensors[:] = [names.get(name, name) for name in tensors]
        graph = helper.make_graph(
            [*nodes, *self.nodes], "spequant", list(inputs), list(outputs.values()), self.constants
        )
        opsets = [helper.make_opsetid(name, version) for name, version in {"": WRITTEN, **(domains or {})}.items()]
        model = declare_lowest(helper.make_model(graph, opset_imports=opsets, producer_name="spequant"))
        helper.set_model_props(model, dict(about))
        self.onnx.checker.check_model(model, full_check=True)
        return model

    def end(self, op: Operation, name: str, batch: str | int, kind: Any = None) -> Any:
        """The value_info of an end of the graph, of the shape of `op`. kind: of its numbers; None: float."""
        kind = self.onnx.TensorProto.FLOAT if kind is None else kind
        return self.onnx.helper.make_tensor_value_info(name, kind, [batch, *op.shape[1:]])

    def ends(self, program: Program, batch: str | int) -> dict[str, Any]:
        """{name in the graph: value_info} of the outputs; one that has two names is there twice."""
        infos: dict[str, Any] = {}
        for name, op in program.outputs.items():
            value = self.value(op)
            value = self.node("Identity", [value], op.name) if value in infos else value
            infos[value] = self.end(op, name, batch)
        return infos

    def emit_program(self, program: Program) -> None:
        """All but the input, whose name is there."""
        for op in program.ops[1:]:
            self.emit(op)


Writers = Mapping[type[Operation], Callable[[Any, Any], str]]
"""{operation: what adds its nodes to an emitter and gives the name of its result}"""


def pads(padding: Sequence[int], spatial: int) -> list[int]:
    """As ONNX has it: all before the positions, then all after."""
    before, after = sides(padding, spatial)
    return [*before, *after]


def conv_attributes(op: Weighted | FloatLayer) -> dict[str, Any]:
    """Of the Conv node of a layer."""
    return {
        "kernel_shape": list(op.weight.shape[2:]),
        "strides": list(op.stride),
        "pads": pads(op.padding, op.spatial),
        "dilations": list(op.dilation),
        "group": op.groups,
    }


def float_layer(e: Emitter, op: FloatLayer) -> str:
    (x,) = e.sources(op)
    weight, bias = (e.tensor(op, t.detach().numpy(), f"{op.name}.float") for t in (op.weight, op.bias))
    if not op.spatial:
        return gemm(e, op, x, [weight, bias], str, str)
    return e.node("Conv", [x, weight, bias], op.name, **conv_attributes(op))


OnValue = Callable[[str], str]
"""From what is stored to values, or from values to what is stored, by names."""


def gemm(e: Emitter, op: Weighted | FloatLayer, x: str, parts: Sequence[str], value: OnValue, rounded: OnValue) -> str:
    """A linear layer, of more than two dimensions on its last: rows of the others together. x: as it is stored; parts:
    weight and bias; value, rounded: the forms of its input and result."""
    if len(op.shape) == 2:
        return rounded(e.node("Gemm", [value(x), *parts], op.name, transB=1))
    rows = value(reshaped(e, x, (-1, op.weight.shape[1]), op.name))
    out = rounded(e.node("Gemm", [rows, *parts], op.name, transB=1))
    return reshaped(e, out, (-1, *op.shape[1:]), op.name)


def reshaped(e: Emitter, value: str, shape: Sequence[int], name: str) -> str:
    """shape: the first, -1, any number."""
    return e.node("Reshape", [value, e.constant(np.asarray(shape, np.int64), f"{name}.shape")], name)


def _clamp(e: Emitter, op: Clamp) -> str:
    (x,) = e.sources(op)
    if (op.low, op.high) == (0.0, float("inf")):
        return e.node("Relu", [x], op.name)
    ends = [e.constant(np.float32(end), f"{op.name}.end") for end in (op.low, op.high)]
    return e.node("Clip", [x, *ends], op.name)


def mean(e: Emitter, op: Mean, value: str, rounded: OnValue = str) -> str:
    """rounded: from the node's result to what is stored, before it is given its shape."""
    rank = len(op.inputs[0].shape)
    if rank == 3 and not op.dims:  # of three dimensions whose codes have a zero point OpenVINO 2026.4 gives others
        channels, length = op.inputs[0].shape[1:]
        value = reshaped(e, value, (-1, channels, 1, length), op.name)
        out = rounded(e.node("GlobalAveragePool", [value], op.name))
        return reshaped(e, out, (-1, *op.shape[1:]), op.name)
    if op.dims or rank != 4:
        axes = list(op.dims or range(2, rank))
        return rounded(e.node("ReduceMean", [value], op.name, axes=axes, keepdims=int(op.keep)))
    out = rounded(e.node("GlobalAveragePool", [value], op.name))
    return out if op.keep else e.node("Flatten", [out], op.name, axis=1)


def _amax(e: Emitter, op: Amax) -> str:
    axes = list(op.dims or range(2, len(op.inputs[0].shape)))
    return e.node("ReduceMax", e.sources(op), op.name, axes=axes, keepdims=int(op.keep))


def window(op: MaxPool | AvgPool) -> dict[str, Any]:
    """Attributes of a pooling node."""
    places = pads(op.padding, len(op.kernel))
    return {"kernel_shape": list(op.kernel), "strides": list(op.stride), "pads": places}


def _max_pool(e: Emitter, op: MaxPool) -> str:
    return e.node("MaxPool", e.sources(op), op.name, **window(op))


def avg_pool(e: Emitter, op: AvgPool, value: str) -> str:
    return e.node("AveragePool", [value], op.name, **window(op), count_include_pad=int(op.counts_padding))


def _slice(e: Emitter, op: Slice) -> str:
    sizes = op.inputs[0].shape[1:]
    cut = [d for d, n in enumerate(sizes) if (op.start[d], op.stop[d], op.step[d]) != (0, n, 1)]
    columns = zip(*((op.start[d], op.stop[d], d + 1, op.step[d]) for d in cut), strict=True)
    ends = [e.constant(np.asarray(column, np.int64), f"{op.name}.slice") for column in columns]
    return e.node("Slice", [*e.sources(op), *ends], op.name)


ONNX_PAD_MODES = {"replicate": "edge"}
"""{torch's word for a kind of padding: ONNX's}"""


def pad(e: Emitter, op: Pad, filling: Any) -> str:
    """filling: as its numbers are stored."""
    places = e.constant(np.asarray([0, *op.before, 0, *op.after], np.int64), f"{op.name}.pads")
    value = [e.constant(filling, f"{op.name}.filling")] if op.mode == "constant" else []
    return e.node("Pad", [*e.sources(op), places, *value], op.name, mode=ONNX_PAD_MODES.get(op.mode, op.mode))


def _repeat(e: Emitter, op: Repeat) -> str:
    """Resize where that is of positions, as of images; Tile of dimensions of their own takes onnxruntime 1.4 ms for
    0.08 (64 channels of 56 x 56)."""
    (x,), (channels, *times) = e.sources(op), op.times
    sizes = list(op.inputs[0].shape[1:])
    if channels > 1 or len(times) not in (1, 2):
        apart = [n for size in sizes for n in (size, 1)]
        repeats = e.constant(np.asarray([1, *(n for t in op.times for n in (1, t))], np.int64), f"{op.name}.times")
        tiled = e.node("Tile", [reshaped(e, x, (-1, *apart), op.name), repeats], op.name)
        return reshaped(e, tiled, (-1, *op.shape[1:]), op.name)
    if len(times) == 1:
        x, times = reshaped(e, x, (-1, sizes[0], 1, sizes[1]), op.name), [1, *times]
    form = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    scales = e.constant(np.asarray([1, 1, *times], np.float32), f"{op.name}.times")
    out = e.node("Resize", [x, "", scales], op.name, **form)
    return out if len(op.times) == 3 else reshaped(e, out, (-1, *op.shape[1:]), op.name)


def _pixel_shuffle(e: Emitter, op: PixelShuffle) -> str:
    (x,) = e.sources(op)
    if len(op.factors) == 2 and len(set(op.factors)) == 1:
        return e.node("DepthToSpace", [x], op.name, blocksize=op.factors[0], mode="CRD")
    moved = e.node("Transpose", [reshaped(e, x, (-1, *op.apart), op.name)], op.name, perm=list(op.order))
    return reshaped(e, moved, (-1, *op.shape[1:]), op.name)


ALIKE: Writers = {
    FloatLayer: float_layer,
    Clamp: _clamp,
    Sigmoid: lambda e, op: e.node("Sigmoid", e.sources(op), op.name),
    Amax: _amax,
    MaxPool: _max_pool,
    Flatten: lambda e, op: e.node("Flatten", e.sources(op), op.name, axis=1),
    Reshape: lambda e, op: reshaped(e, e.sources(op)[0], (-1, *op.shape[1:]), op.name),
    Transpose: lambda e, op: e.node("Transpose", e.sources(op), op.name, perm=list(op.order)),
    PixelShuffle: _pixel_shuffle,
    Slice: _slice,
    Repeat: _repeat,
    Concat: lambda e, op: e.node("Concat", e.sources(op), op.name, axis=op.dim),
    Subtract: lambda e, op: e.node("Sub", e.sources(op), op.name),
    Divide: lambda e, op: e.node("Div", e.sources(op), op.name),
}
"""Of operations that are the same node, on codes or on values, in every ONNX graph."""
