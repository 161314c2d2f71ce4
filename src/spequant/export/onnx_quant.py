"""A program as a QONNX graph (arXiv 2206.07527) for FPGA flows such as FINN and hls4ml: float values between true
`Quant` nodes of 1 to 8 bits.

Weights that leave zero out cannot be said at their own width: SAWB's four levels at 2 bits would need a zero point of
-0.5, and zero points are whole. Their odd codes, -3, -1, 1, 3, are signed numbers of one bit more. -1 and 1 alone are
`BipolarQuant`, one bit, whose type qonnx infers at scale 1 alone: the scale then stands behind the layer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spequant.export.onnx_file import metadata
from spequant.export.onnx_integer import FLOAT, Emitter, conv_attributes, max_pool, moved
from spequant.export.program import Add, Float, Grid, Input, MaxPool, Move, Op, Program, Quantize, Weighted

DOMAIN = "qonnx.custom_op.general"


def fewest_bits(low: int, high: int) -> tuple[int, int, int]:
    """(bits, signed, narrow) of the smallest `Quant` integer type that holds low .. high; narrow: without -2^(b-1)."""
    if low >= 0:
        return max(1, high.bit_length()), 0, 0
    bits = max((-low - 1).bit_length(), high.bit_length()) + 1
    return bits, 1, int(low > -(2 ** (bits - 1)))


def _quant(e: Emitter, value: str, grid: Grid, name: str) -> str:
    """`value` on `grid`; where the type has codes that the grid has not, they are clipped off first."""
    bits, signed, narrow = fewest_bits(grid.low, grid.high)
    least = -(2 ** (bits - 1)) + narrow if signed else 0
    if (grid.low, grid.high) != (least, 2 ** (bits - signed) - 1):
        ends = [e.constant(np.float32(code * grid.step), f"{name}.end") for code in (grid.low, grid.high)]
        value = e.node("Clip", [value, *ends], name)
    return _quant_node(e, value, np.float32(grid.step), bits, signed, narrow, name)


def _quant_node(e: Emitter, value: str, scale: Any, bits: int, signed: int, narrow: int, name: str) -> str:
    numbers = (scale, "scale"), (np.float32(0), "zero"), (np.float32(bits), "bits")
    inputs = [value, *(e.constant(number, f"{name}.{what}") for number, what in numbers)]
    return e.node("Quant", inputs, name, domain=DOMAIN, signed=signed, narrow=narrow, rounding_mode="ROUND")


def weight_codes(op: Weighted) -> tuple[np.ndarray, np.ndarray]:
    """(codes, fp32 scale an output): the smallest whole numbers that do, and scales above zero."""
    codes = op.weight.numpy().astype(np.int64)
    divisor = max(1, int(np.gcd.reduce(codes, axis=None)))
    scale = op.scale.numpy() * divisor
    codes = codes // divisor * np.sign(scale).astype(np.int64).reshape(-1, *[1] * (codes.ndim - 1))
    return codes, np.where(scale == 0, 1.0, np.abs(scale)).astype(np.float32)


def _weighted(e: Emitter, op: Weighted) -> str:
    codes, scale = weight_codes(op)
    name = f"{op.name}.weight"
    bias = op.offset.numpy().astype(np.float32)
    if (np.abs(codes) == 1).all():
        inputs = [e.constant(codes.astype(np.float32), name), e.constant(np.float32(1), f"{name}.scale")]
        sums = _layer(e, op, [e.names[op.inputs[0]], e.node("BipolarQuant", inputs, name, domain=DOMAIN)])
        column = (1, -1, *[1] * op.spatial)
        sums = e.node("Mul", [sums, e.constant(scale.reshape(column), f"{name}.scale")], op.name)
        return _result(e, e.node("Add", [sums, e.constant(bias.reshape(column), f"{op.name}.bias")], op.name), op)
    scale = scale.reshape(-1, *[1] * (codes.ndim - 1))
    weight = e.constant((codes * scale).astype(np.float32), name)
    bits, _, narrow = fewest_bits(min(-1, int(codes.min())), max(1, int(codes.max())))
    weight = _quant_node(e, weight, scale, bits, 1, narrow, name)
    return _result(e, _layer(e, op, [e.names[op.inputs[0]], weight, e.constant(bias, f"{op.name}.bias")]), op)


def _layer(e: Emitter, op: Weighted, inputs: list[str]) -> str:
    if op.spatial:
        return e.node("Conv", inputs, op.name, **conv_attributes(op))
    return e.node("Gemm", inputs, op.name, transB=1)


def _result(e: Emitter, value: str, op: Op) -> str:
    return value if op.grid is None else _quant(e, value, op.grid, op.name)


EMIT: dict[type[Op], Callable[..., str]] = {
    Quantize: lambda e, op: _result(e, e.names[op.inputs[0]], op),
    Weighted: _weighted,
    Add: lambda e, op: _result(e, e.node("Add", [e.names[i] for i in op.inputs], op.name), op),
    MaxPool: max_pool,
    Move: moved,
    Float: lambda e, op: FLOAT[op.kind](e, op, [e.names[i] for i in op.inputs], **op.attributes),
}


def quant_graph(program: Program, *, about: Mapping[str, Any] | None = None) -> Any:
    """The QONNX model of `program`: input "input", float, of one sample, as FPGA flows want it; output "output".

    about: JSON that `read_onnx` gives back. ModuleNotFoundError: the extra `deploy` is not installed.
    """
    e = Emitter()
    e.names[program.input] = "input"
    for op in program.ops:
        if not isinstance(op, Input):
            e.names[op] = EMIT[type(op)](e, op)
    kind = e.onnx.TensorProto.FLOAT
    info = e.onnx.helper.make_tensor_value_info
    inputs = [info("input", kind, [1, *program.input.shape[1:]])]
    outputs = {e.names[program.output]: info("output", kind, [1, *program.output.shape[1:]])}
    return e.model(inputs, outputs, metadata("qonnx", {"about": dict(about or {})}), {DOMAIN: 1})
