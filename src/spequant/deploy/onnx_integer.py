"""A program as an integer ONNX graph that onnxruntime and OpenVINO fuse: 8-bit arithmetic on codes of few levels.

The pattern (measured, docs/deploy.md): codes as uint8; QuantizeLinear with the low-bit step -> Clip on the integers ->
DequantizeLinear -> Conv with DequantizeLinear of int8 weights and int32 bias -> QuantizeLinear ... Signed codes are
stored as code + `Grid.zero`, since a convolution's input and output have to be of one type to be fused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from spequant.deploy.integers import input_step, integers
from spequant.deploy.onnx_file import Preprocessing, describe, metadata
from spequant.deploy.onnx_versions import WRITTEN, declare_lowest
from spequant.deploy.program import Add, Float, Grid, Input, MaxPool, Move, Op, Program, Quantize, Weighted
from spequant.extras import needs


def stored(codes: Tensor, grid: Grid) -> np.ndarray:
    """Codes as an exported graph stores them: uint8."""
    return (codes + grid.zero).numpy().astype(np.uint8)


class Emitter:
    """Nodes and constants of one graph, op by op.

    names: of each op's result, codes or float; values: of codes as float. tensors: names of the constants that an op
    consists of. once: equal weights are written once, as of a layer that is called several times.
    """

    def __init__(self, once: bool = False) -> None:
        self.onnx = needs("onnx", "deploy")
        self.once, self.written = once, dict[Any, str]()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names: dict[Op, str] = {}
        self.values: dict[Op, str] = {}
        self.tensors: dict[Op, list[str]] = {}
        self.sums: set[tuple[Op, ...]] = set()

    def constant(self, value: Any, name: str) -> str:
        array = np.asarray(value, order="C")
        key = (array.dtype.str, array.shape, array.tobytes()) if self.once and array.ndim > 1 else len(self.constants)
        if key in self.written:
            return self.written[key]
        name = self.written[key] = f"{name}.{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def tensor(self, op: Op, value: Any, name: str) -> str:
        """A constant that `op` can be read back from (`onnx_file.py`)."""
        name = self.constant(value, name)
        self.tensors.setdefault(op, []).append(name)
        return name

    def node(self, kind: str, inputs: Iterable[str], name: str, **attributes: Any) -> str:
        out = f"{name}/{kind}.{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def emit(self, op: Op) -> None:
        """Add `op`, whose inputs are there."""
        self.names[op] = EMIT[type(op)](self, op)

    def value(self, op: Op) -> str:
        """The float values of an op's result."""
        if op.grid is None:
            return self.names[op]
        return self.node("DequantizeLinear", [self.names[op], *self._scale(op.grid, op.name)], op.name)

    def rounded(self, value: str, grid: Grid, name: str, step: float | None = None) -> str:
        """Float values to stored codes. step: of `value`'s unit; None: the grid's."""
        out = self.node("QuantizeLinear", [value, *self._scale(grid, name, step)], name)
        low, high = grid.low + grid.zero, grid.high + grid.zero
        if (low, high) == (0, 255):
            return out
        ends = [self.constant(np.uint8(end), f"{name}.end") for end in (low, high)]
        return self.node("Clip", [out, *ends], name)

    def result(self, value: str, op: Op) -> str:
        return value if op.grid is None else self.rounded(value, op.grid, op.name)

    def _scale(self, grid: Grid, name: str, step: float | None = None) -> list[str]:
        number = self.constant(np.float32(grid.step if step is None else step), f"{name}.step")
        return [number, self.constant(np.uint8(grid.zero), f"{name}.zero")]

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


def _quantize(e: Emitter, op: Quantize) -> str:
    """x * rate, as fake quantization has it: x / step differs in its last bit, and pixels, of 256 values, lie on ties
    all together."""
    assert op.grid is not None
    scaled = e.node("Mul", [e.value(op.inputs[0]), e.constant(np.float32(op.grid.rate), f"{op.name}.rate")], op.name)
    return e.rounded(scaled, op.grid, op.name, 1.0)


def _weighted(e: Emitter, op: Weighted) -> str:
    made, name = integers(op), op.name
    weight = e.tensor(op, made.weight.numpy(), f"{name}.weight")
    scale = e.tensor(op, made.scale.numpy(), f"{name}.scale")
    zero = e.constant(np.zeros(len(made.scale), np.int8), f"{name}.zeros")
    weight = e.node("DequantizeLinear", [weight, scale, zero], name, axis=0)
    bias = e.tensor(op, made.bias.numpy(), f"{name}.bias")
    bias_scale = e.constant((input_step(op) * made.scale).numpy(), f"{name}.bias_scale")
    bias_zero = e.constant(np.zeros(len(made.scale), np.int32), f"{name}.bias_zeros")
    bias = e.node("DequantizeLinear", [bias, bias_scale, bias_zero], name, axis=0)
    inputs = [e.value(op.inputs[0]), weight, bias]
    if not op.spatial:
        return e.result(e.node("Gemm", inputs, name, transB=1), op)
    return e.result(e.node("Conv", inputs, name, **conv_attributes(op)), op)


def conv_attributes(op: Weighted) -> dict[str, Any]:
    """Of the Conv node of a layer."""
    return {
        "kernel_shape": list(op.weight.shape[2:]),
        "strides": list(op.stride),
        "pads": [*op.padding, *op.padding],
        "dilations": list(op.dilation),
        "group": op.groups,
    }


def _add(e: Emitter, op: Add) -> str:
    # Two identical sums would be merged and then have two roundings, which no engine fuses: the second is b + a.
    inputs = op.inputs if op.inputs not in e.sums else op.inputs[::-1]
    e.sums.add(op.inputs)
    return e.result(e.node("Add", [e.value(i) for i in inputs], op.name), op)


def max_pool(e: Emitter, op: MaxPool) -> str:
    """On codes, or on their values."""
    pads = [*op.padding, *op.padding]
    own = {"kernel_shape": list(op.kernel), "strides": list(op.stride), "pads": pads}
    return e.node("MaxPool", [e.names[op.inputs[0]]], op.name, **own)


def moved(e: Emitter, op: Move) -> str:
    """On codes, or on their values."""
    inputs = [e.names[i] for i in op.inputs]
    if op.kind == "flatten":
        return e.node("Flatten", inputs, op.name, axis=1)
    if op.kind == "concat":
        return e.node("Concat", inputs, op.name, axis=1)
    return _reduced(e, "ReduceMax", inputs, op.inputs[0], op.name, op.keep)


def _reduced(e: Emitter, kind: str, inputs: list[str], source: Op, name: str, keep: bool) -> str:
    """Over all positions."""
    return e.node(kind, inputs, name, axes=list(range(2, len(source.shape))), keepdims=int(keep))


def _float(e: Emitter, op: Float) -> str:
    return FLOAT[op.kind](e, op, [e.value(i) for i in op.inputs], **op.attributes)


def _float_layer(e: Emitter, op: Float, values: list[str], **a: Any) -> str:
    weight, bias = (e.tensor(op, t.detach().numpy(), f"{op.name}.float") for t in op.tensors)
    if not a:
        return e.node("Gemm", [values[0], weight, bias], op.name, transB=1)
    kernel = list(op.tensors[0].shape[2:])
    own = {
        "kernel_shape": kernel,
        "strides": a["stride"],
        "pads": [*a["padding"], *a["padding"]],
        "dilations": a["dilation"],
    }
    return e.node("Conv", [values[0], weight, bias], op.name, group=a["groups"], **own)


def _float_affine(e: Emitter, op: Float, values: list[str]) -> str:
    shape = (-1, *[1] * (len(op.shape) - 2))
    factor, shift = (e.tensor(op, t.numpy().reshape(shape), f"{op.name}.float") for t in op.tensors)
    return e.node("Add", [e.node("Mul", [values[0], factor], op.name), shift], op.name)


def _float_clamp(e: Emitter, op: Float, values: list[str], low: float, high: float) -> str:
    if (low, high) == (0.0, float("inf")):
        return e.node("Relu", values, op.name)
    ends = [e.constant(np.float32(end), f"{op.name}.end") for end in (low, high)]
    return e.node("Clip", [values[0], *ends], op.name)


def _float_mean(e: Emitter, op: Float, values: list[str], keep: bool) -> str:
    out = e.node("GlobalAveragePool", values, op.name)
    return out if keep else e.node("Flatten", [out], op.name, axis=1)


FLOAT: dict[str, Callable[..., str]] = {
    "layer": _float_layer,
    "affine": _float_affine,
    "add": lambda e, op, v: e.node("Add", v, op.name),
    "mul": lambda e, op, v: e.node("Mul", v, op.name),
    "clamp": _float_clamp,
    "mean": _float_mean,
    "amax": lambda e, op, v, keep: _reduced(e, "ReduceMax", v, op.inputs[0], op.name, keep),
    "max_pool": lambda e, op, v, kernel, stride, padding: e.node(
        "MaxPool", v, op.name, kernel_shape=kernel, strides=stride, pads=[*padding, *padding]
    ),
    "flatten": lambda e, op, v: e.node("Flatten", v, op.name, axis=1),
    "concat": lambda e, op, v: e.node("Concat", v, op.name, axis=1),
    "sigmoid": lambda e, op, v: e.node("Sigmoid", v, op.name),
}
EMIT: dict[type[Op], Callable[..., str]] = {
    Quantize: _quantize,
    Weighted: _weighted,
    Add: _add,
    MaxPool: max_pool,
    Move: moved,
    Float: _float,
}


def integer_graph(
    program: Program,
    *,
    preprocessing: Preprocessing | None = None,
    taps: Sequence[Op] = (),
    about: Mapping[str, Any] | None = None,
) -> Any:
    """The onnx model of `program`: input "input" (batch, ...), output "output" (batch, classes).

    preprocessing: (mean, std) a channel, of images scaled to [0, 1]: the input is then uint8 images.
    taps: ops whose stored codes, or float values, are outputs, too, "tap0", "tap1" ...
    about: JSON that `read_program` gives back.

    ModuleNotFoundError: the extra `deploy` is not installed.
    """
    e = Emitter(once=True)
    helper, kinds = e.onnx.helper, e.onnx.TensorProto
    source = program.input
    e.names[source] = "input"
    if preprocessing is not None:
        mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in preprocessing)
        pixels = e.node("Cast", ["input"], "input", to=kinds.FLOAT)
        scaled = e.node("Div", [pixels, e.constant(np.float32(255), "input.scale")], "input")
        centred = e.node("Sub", [scaled, e.constant(mean, "input.mean")], "input")
        e.names[source] = e.node("Div", [centred, e.constant(std, "input.std")], "input")
    for op in program.ops:
        if not isinstance(op, Input):
            e.emit(op)
    info = helper.make_tensor_value_info
    kind = kinds.FLOAT if preprocessing is None else kinds.UINT8
    inputs = [info("input", kind, ["batch", *source.shape[1:]])]
    outputs = {e.value(program.output): info("output", kinds.FLOAT, ["batch", *program.output.shape[1:]])}
    outputs |= {e.names[op]: _info(e, op, f"tap{i}") for i, op in enumerate(taps)}
    content = {"program": describe(program, e.tensors), "preprocessing": preprocessing, "about": dict(about or {})}
    return e.model(inputs, outputs, metadata("integer", content))


def op_graph(op: Op) -> Any:
    """One op on stored codes given as inputs "in0", "in1" ...: what an engine makes of it, forced to these inputs."""
    e = Emitter()
    inputs = []
    for source in dict.fromkeys(op.inputs):
        e.names[source] = f"in{len(inputs)}"
        inputs.append(_info(e, source, e.names[source]))
    e.emit(op)
    return e.model(inputs, {e.names[op]: _info(e, op, "output")}, {})


def _info(e: Emitter, op: Op, name: str) -> Any:
    kind = e.onnx.TensorProto.FLOAT if op.grid is None else e.onnx.TensorProto.UINT8
    return e.onnx.helper.make_tensor_value_info(name, kind, ["batch", *op.shape[1:]])
