"""A program as a QONNX graph (arXiv 2206.07527) for FPGA flows such as FINN and hls4ml: codes between true `Quant`
nodes of 1 to 8 bits and scale 1.

What has a scale (weights, batch norm with bias, the steps of activations) is one `BatchNormalization` behind a layer:
hls4ml takes no weight whose scale differs from channel to channel, and no other scale of a tensor with two readers.
Linear layers are `MatMul`. `Quant` rounds what is in units of codes already, as fake quantization does.

Weights that leave zero out cannot be said at their own width: SAWB's four levels at 2 bits would need a zero point of
-0.5, and zero points are whole. Their odd codes, -3, -1, 1, 3, are signed numbers of one bit more. Weights that are
only -1 and 1 are `BipolarQuant`, one bit.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from spequant.deploy import onnx_curves
from spequant.deploy.formats.format import Draft, ProgramFormat
from spequant.deploy.grids import Grid
from spequant.deploy.integers import smallest_codes
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.onnx_file import loaded_onnx, metadata, numbers_in, read_onnx, write_onnx
from spequant.deploy.onnx_graph import ALIKE, Emitter, Writers, avg_pool, conv_attributes, float_layer, mean, pad
from spequant.deploy.operations import (
    Add,
    Affine,
    AvgPool,
    FloatLayer,
    Function,
    Input,
    Mean,
    Mul,
    Operation,
    Pad,
    Quantize,
    Weighted,
)
from spequant.deploy.operations.positions import unit
from spequant.deploy.program import Program

DOMAIN = "qonnx.custom_op.general"


def bits_of_range(low: int, high: int) -> tuple[int, int, int]:
    """(bits, signed, narrow) of the smallest `Quant` integer type that holds low .. high; narrow: without -2^(b-1)."""
    if low >= 0:
        return max(1, high.bit_length()), 0, 0
    bits = max((-low - 1).bit_length(), high.bit_length()) + 1
    return bits, 1, int(low > -(2 ** (bits - 1)))


class QuantGraph(Emitter):
    """multiplied: values of codes that are there already."""

    def __init__(self) -> None:
        super().__init__(WRITERS)
        self.multiplied: dict[Operation, str] = {}

    def value(self, op: Operation) -> str:
        if op.grid is None:
            return self.names[op]
        if op not in self.multiplied:
            self.multiplied[op] = self.affine(op, self.names[op], op.grid.step)
        return self.multiplied[op]

    def affine(self, op: Operation, value: str, scale: Any, offset: Any = 0.0) -> str:
        """value * scale + offset, one number each or one per channel; `op` has the channels."""
        parts = {"scale": scale, "offset": offset, "mean": 0.0, "variance": 1.0}
        full = (np.full(op.shape[1], number, np.float32) for number in parts.values())
        constants = [self.constant(number, f"{op.name}.{what}") for what, number in zip(parts, full, strict=True)]
        return self.node("BatchNormalization", [value, *constants], op.name, epsilon=0.0)

    def by_outputs(self, op: Weighted | FloatLayer, value: str, scale: Any, offset: Any) -> str:
        """value * scale + offset by outputs of a layer: of a linear one on more than two dimensions, the last."""
        if op.spatial or len(op.shape) == 2:
            return self.affine(op, value, scale, offset)
        for kind, number in (("Mul", scale), ("Add", offset)):
            constant = self.constant(np.asarray(number, np.float32), f"{op.name}.{kind}")
            value = self.node(kind, [value, constant], op.name)
        return value

    def quant(self, value: str, bits: int, signed: int, narrow: int, name: str) -> str:
        numbers = {"scale": 1, "zero": 0, "bits": bits}
        inputs = [value, *(self.constant(np.float32(number), f"{name}.{what}") for what, number in numbers.items())]
        form = {"signed": signed, "narrow": narrow, "rounding_mode": "ROUND"}
        return self.node("Quant", inputs, name, domain=DOMAIN, **form)

    def result(self, value: str, op: Operation) -> str:
        return value if op.grid is None else self.rounded(value, op.grid, op.name)

    def rounded(self, value: str, grid: Grid, name: str) -> str:
        """To codes of `grid`; where the type has codes that the grid has not, they are clipped off first."""
        bits, signed, narrow = bits_of_range(grid.low, grid.high)
        least = -(2 ** (bits - 1)) + narrow if signed else 0
        if (grid.low, grid.high) != (least, 2 ** (bits - signed) - 1):
            ends = [self.constant(np.float32(end), f"{name}.end") for end in (grid.low, grid.high)]
            value = self.node("Clip", [value, *ends], name)
        return self.quant(value, bits, signed, narrow, name)


def _quantize(e: QuantGraph, op: Quantize) -> str:
    assert op.grid is not None
    return e.result(e.affine(op, e.value(op.inputs[0]), op.grid.rate), op)


def _weighted(e: QuantGraph, op: Weighted) -> str:
    codes, scale = smallest_codes(op.weight, op.scale)
    name = f"{op.name}.weight"
    weight = e.constant((codes if op.spatial else codes.T).astype(np.float32), name)
    if (np.abs(codes) == 1).all():
        weight = e.node("BipolarQuant", [weight, e.constant(np.float32(1), f"{name}.scale")], name, domain=DOMAIN)
    else:
        bits, _, narrow = bits_of_range(min(-1, int(codes.min())), max(1, int(codes.max())))
        weight = e.quant(weight, bits, 1, narrow, name)
    inputs = [e.names[op.inputs[0]], weight]
    sums = e.node("Conv", inputs, op.name, **conv_attributes(op)) if op.spatial else e.node("MatMul", inputs, op.name)
    step = 1.0 if op.grid is None else op.grid.step
    return e.result(e.by_outputs(op, sums, scale * op.step.numpy() / step, op.offset.numpy() / step), op)


def _add(e: QuantGraph, op: Add) -> str:
    if not op.of_codes:
        return e.result(e.node("Add", [e.value(i) for i in op.inputs], op.name), op)
    step = 1.0 if op.grid is None else op.grid.step
    terms = [e.affine(i, e.names[i], i.grid.step / step) for i in op.inputs if i.grid is not None]
    return e.result(e.node("Add", terms, op.name), op)


def _times(e: QuantGraph, op: Operation, value: str, factor: float) -> str:
    return e.node("Mul", [value, e.constant(np.float32(factor), f"{op.name}.factor")], op.name)


def _mul(e: QuantGraph, op: Mul) -> str:
    if not op.of_codes:
        return e.node("Mul", [e.value(i) for i in op.inputs], op.name)
    product = e.node("Mul", [e.names[i] for i in op.inputs], op.name)
    return e.result(_times(e, op, product, float(op.unit)), op)


def _function(e: QuantGraph, op: Function) -> str:
    for part in op.parts:
        e.emit(part)
    assert op.grid is not None
    return e.result(_times(e, op, e.names[op.parts[-1]], op.grid.rate), op)


def _averaged(e: QuantGraph, op: AvgPool | Mean) -> str:
    """Codes are averaged, and the mean is scaled to codes of the result."""
    average = partial(avg_pool, e, op) if isinstance(op, AvgPool) else partial(mean, e, op)
    if op.grid is None:
        return average(e.value(op.inputs[0]))
    return e.result(_times(e, op, average(e.names[op.inputs[0]]), float(unit(op))), op)


def _float_layer(e: QuantGraph, op: FloatLayer) -> str:
    if op.spatial:
        return float_layer(e, op)
    (x,), (weight, bias) = e.sources(op), (t.detach().numpy() for t in (op.weight, op.bias))
    product = e.node("MatMul", [x, e.constant(weight.T, f"{op.name}.weight")], op.name)
    return e.by_outputs(op, product, 1.0, bias)


WRITERS: Writers = {
    **ALIKE,
    **onnx_curves.WRITERS,
    Function: _function,
    Input: lambda e, op: e.names[op],
    Quantize: _quantize,
    Weighted: _weighted,
    FloatLayer: _float_layer,
    Affine: lambda e, op: e.affine(op, *e.sources(op), op.factor.numpy(), op.shift.numpy()),
    Add: _add,
    Mul: _mul,
    Mean: _averaged,
    AvgPool: _averaged,
    Pad: lambda e, op: pad(e, op, np.float32(op.filling)),
}


def quant_graph(program: Program, *, about: Mapping[str, Any] | None = None) -> Any:
    """The QONNX model of `program`: input "input", float, of one sample, as FPGA flows want it; output "output".

    Args:
        program: what `lower` makes.
        about: JSON that `read_onnx` gives back.

    Raises:
        ModuleNotFoundError: the extra `deploy` is not installed.
    """
    e = QuantGraph()
    e.names[program.input] = "input"
    e.emit_program(program)
    inputs = [e.end(program.input, "input", 1)]
    return e.model(inputs, e.ends(program, 1), metadata("qonnx", {"act_bits": program.act_bits}, about), {DOMAIN: 1})


class Qonnx(ProgramFormat):
    """QONNX."""

    name, suffix, extension = "qonnx", ".qonnx.onnx", ".onnx"
    help = "true Quant nodes of 1 to 8 bits, for FINN and hls4ml"
    engines = ("qonnx",)
    runs_in = "qonnx, FINN, hls4ml"
    images = 100  # node by node it is slow
    writers = WRITERS

    def content(self, program: Program, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None) -> Any:
        return quant_graph(program, about=about)

    def write(self, draft: Draft, path: Path) -> None:
        write_onnx(draft.content, path)

    def recognised(self, path: Path) -> bool:
        return read_onnx(path)[1]["kind"] == "qonnx"

    def stored(self, path: Path) -> dict[str, int]:
        return numbers_in(read_onnx(path)[0])

    def open(self, path: Path, network: nn.Module | None) -> Loaded:
        return loaded_onnx(path, self.name, self.engines, *read_onnx(path))
