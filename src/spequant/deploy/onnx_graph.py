"""ONNX graphs, node by node: what the formats share that write a program so, and how they write operations alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spequant.deploy.onnx_versions import WRITTEN, declare_lowest
from spequant.deploy.operations import (
    Amax,
    Clamp,
    Concat,
    Flatten,
    FloatLayer,
    MaxPool,
    Mean,
    Mul,
    Operation,
    Sigmoid,
    Weighted,
)
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

    def emit_program(self, program: Program) -> None:
        """All but the input, whose name is there."""
        for op in program.ops[1:]:
            self.emit(op)


Writers = Mapping[type[Operation], Callable[[Any, Any], str]]
"""{operation: what adds its nodes to an emitter and gives the name of its result}"""


def conv_attributes(op: Weighted | FloatLayer) -> dict[str, Any]:
    """Of the Conv node of a layer."""
    return {
        "kernel_shape": list(op.weight.shape[2:]),
        "strides": list(op.stride),
        "pads": [*op.padding, *op.padding],
        "dilations": list(op.dilation),
        "group": op.groups,
    }


def float_layer(e: Emitter, op: FloatLayer) -> str:
    (x,) = e.sources(op)
    weight, bias = (e.tensor(op, t.detach().numpy(), f"{op.name}.float") for t in (op.weight, op.bias))
    if not op.spatial:
        return e.node("Gemm", [x, weight, bias], op.name, transB=1)
    return e.node("Conv", [x, weight, bias], op.name, **conv_attributes(op))


def _clamp(e: Emitter, op: Clamp) -> str:
    (x,) = e.sources(op)
    if (op.low, op.high) == (0.0, float("inf")):
        return e.node("Relu", [x], op.name)
    ends = [e.constant(np.float32(end), f"{op.name}.end") for end in (op.low, op.high)]
    return e.node("Clip", [x, *ends], op.name)


def _mean(e: Emitter, op: Mean) -> str:
    out = e.node("GlobalAveragePool", e.sources(op), op.name)
    return out if op.keep else e.node("Flatten", [out], op.name, axis=1)


def _amax(e: Emitter, op: Amax) -> str:
    axes = list(range(2, len(op.inputs[0].shape)))
    return e.node("ReduceMax", e.sources(op), op.name, axes=axes, keepdims=int(op.keep))


def _max_pool(e: Emitter, op: MaxPool) -> str:
    pads = [*op.padding, *op.padding]
    window = {"kernel_shape": list(op.kernel), "strides": list(op.stride), "pads": pads}
    return e.node("MaxPool", e.sources(op), op.name, **window)


ALIKE: Writers = {
    FloatLayer: float_layer,
    Mul: lambda e, op: e.node("Mul", e.sources(op), op.name),
    Clamp: _clamp,
    Sigmoid: lambda e, op: e.node("Sigmoid", e.sources(op), op.name),
    Mean: _mean,
    Amax: _amax,
    MaxPool: _max_pool,
    Flatten: lambda e, op: e.node("Flatten", e.sources(op), op.name, axis=1),
    Concat: lambda e, op: e.node("Concat", e.sources(op), op.name, axis=1),
}
"""Of operations that are the same node, on codes or on values, in every ONNX graph."""
