"""A program as a QONNX graph (arXiv 2206.07527) for FPGA flows such as FINN and hls4ml: codes between true `Quant`
nodes of 1 to 8 bits and scale 1.

What has a scale (weights, batch norm with bias, the steps of activations) is one `BatchNormalization` behind a layer:
hls4ml takes no weight whose scale differs from channel to channel, and no other scale of a tensor with two readers.
Linear layers are `MatMul`. `Quant` rounds what is in units of codes already, as fake quantization does.

Weights that leave zero out cannot be said at their own width: SAWB's four levels at 2 bits would need a zero point of
-0.5, and zero points are whole. Their odd codes, -3, -1, 1, 3, are signed numbers of one bit more. -1 and 1 alone are
`BipolarQuant`, one bit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spequant.deploy.integers import input_step
from spequant.deploy.onnx_file import metadata
from spequant.deploy.onnx_integer import FLOAT, Emitter, conv_attributes, max_pool, moved
from spequant.deploy.program import Add, Float, Grid, Input, MaxPool, Move, Op, Program, Quantize, Weighted

DOMAIN = "qonnx.custom_op.general"


def fewest_bits(low: int, high: int) -> tuple[int, int, int]:
    """(bits, signed, narrow) of the smallest `Quant` integer type that holds low .. high; narrow: without -2^(b-1)."""
    if low >= 0:
        return max(1, high.bit_length()), 0, 0
    bits = max((-low - 1).bit_length(), high.bit_length()) + 1
    return bits, 1, int(low > -(2 ** (bits - 1)))


def weight_codes(op: Weighted) -> tuple[np.ndarray, np.ndarray]:
    """(codes, fp32 scale an output): the smallest whole numbers that do, and scales above zero."""
    codes = op.weight.numpy().astype(np.int64)
    divisor = max(1, int(np.gcd.reduce(codes, axis=None)))
    scale = op.scale.numpy() * divisor
    codes = codes // divisor * np.sign(scale).astype(np.int64).reshape(-1, *[1] * (codes.ndim - 1))
    return codes, np.where(scale == 0, 1.0, np.abs(scale)).astype(np.float32)


def _quant(e: Emitter, value: str, bits: int, signed: int, narrow: int, name: str) -> str:
    numbers = {"scale": 1, "zero": 0, "bits": bits}
    inputs = [value, *(e.constant(np.float32(number), f"{name}.{what}") for what, number in numbers.items())]
    return e.node("Quant", inputs, name, domain=DOMAIN, signed=signed, narrow=narrow, rounding_mode="ROUND")


def _rounded(e: Emitter, value: str, grid: Grid, name: str) -> str:
    """To codes of `grid`; where the type has codes that the grid has not, they are clipped off first."""
    bits, signed, narrow = fewest_bits(grid.low, grid.high)
    least = -(2 ** (bits - 1)) + narrow if signed else 0
    if (grid.low, grid.high) != (least, 2 ** (bits - signed) - 1):
        ends = [e.constant(np.float32(end), f"{name}.end") for end in (grid.low, grid.high)]
        value = e.node("Clip", [value, *ends], name)
    return _quant(e, value, bits, signed, narrow, name)


def _affine(e: Emitter, op: Op, value: str, scale: Any, offset: Any = 0.0) -> str:
    """value * scale + offset, a number each or one a channel; `op` has the channels."""
    parts = {"scale": scale, "offset": offset, "mean": 0.0, "variance": 1.0}
    full = (np.full(op.shape[1], number, np.float32) for number in parts.values())
    constants = [e.constant(number, f"{op.name}.{what}") for what, number in zip(parts, full, strict=True)]
    return e.node("BatchNormalization", [value, *constants], op.name, epsilon=0.0)


def _value(e: Emitter, op: Op) -> str:
    """The values of an op's result, of which codes are made once."""
    if op.grid is None:
        return e.names[op]
    if op not in e.values:
        e.values[op] = _affine(e, op, e.names[op], op.grid.step)
    return e.values[op]


def _result(e: Emitter, value: str, op: Op) -> str:
    return value if op.grid is None else _rounded(e, value, op.grid, op.name)


def _quantize(e: Emitter, op: Quantize) -> str:
    assert op.grid is not None
    return _result(e, _affine(e, op, _value(e, op.inputs[0]), op.grid.rate), op)


def _weighted(e: Emitter, op: Weighted) -> str:
    codes, scale = weight_codes(op)
    name = f"{op.name}.weight"
    weight = e.constant((codes if op.spatial else codes.T).astype(np.float32), name)
    if (np.abs(codes) == 1).all():
        weight = e.node("BipolarQuant", [weight, e.constant(np.float32(1), f"{name}.scale")], name, domain=DOMAIN)
    else:
        bits, _, narrow = fewest_bits(min(-1, int(codes.min())), max(1, int(codes.max())))
        weight = _quant(e, weight, bits, 1, narrow, name)
    inputs = [e.names[op.inputs[0]], weight]
    sums = e.node("Conv", inputs, op.name, **conv_attributes(op)) if op.spatial else e.node("MatMul", inputs, op.name)
    unit = 1.0 if op.grid is None else op.grid.step
    return _result(e, _affine(e, op, sums, scale * input_step(op).numpy() / unit, op.offset.numpy() / unit), op)


def _add(e: Emitter, op: Add) -> str:
    unit = 1.0 if op.grid is None else op.grid.step
    steps = [1.0 if i.grid is None else i.grid.step for i in op.inputs]
    terms = [_affine(e, i, e.names[i], step / unit) for i, step in zip(op.inputs, steps, strict=True)]
    return _result(e, e.node("Add", terms, op.name), op)


def _float(e: Emitter, op: Float) -> str:
    values = [_value(e, i) for i in op.inputs]
    if op.kind == "layer" and not op.attributes:
        weight, bias = (t.detach().numpy() for t in op.tensors)
        product = e.node("MatMul", [values[0], e.constant(weight.T, f"{op.name}.weight")], op.name)
        return _affine(e, op, product, 1.0, bias)
    if op.kind == "affine":
        return _affine(e, op, values[0], *(t.numpy() for t in op.tensors))
    return FLOAT[op.kind](e, op, values, **op.attributes)


EMIT: dict[type[Op], Callable[..., str]] = {
    Quantize: _quantize,
    Weighted: _weighted,
    Add: _add,
    MaxPool: max_pool,
    Move: moved,
    Float: _float,
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
    outputs = {_value(e, program.output): info("output", kind, [1, *program.output.shape[1:]])}
    return e.model(inputs, outputs, metadata("qonnx", {"about": dict(about or {})}), {DOMAIN: 1})
