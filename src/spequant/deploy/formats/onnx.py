"""Integer ONNX that onnxruntime and OpenVINO fuse: 8-bit arithmetic on codes of few levels.

The pattern (measured, docs/deploy.md): codes as uint8; QuantizeLinear with the low-bit step -> Clip on the integers ->
DequantizeLinear -> Conv with DequantizeLinear of int8 weights and int32 bias -> QuantizeLinear ... Signed codes are
stored as code + `Grid.zero`, since a convolution's input and output have to be of one type to be fused.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from spequant.deploy import onnx_curves
from spequant.deploy.alignment import computed, finer, steps_in
from spequant.deploy.code_graphs import CodedGraph, CodeGraphs
from spequant.deploy.formats.format import Draft, ProgramFormat
from spequant.deploy.grids import Grid
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.onnx_file import described, loaded_onnx, metadata, program_in, read_onnx, write_onnx
from spequant.deploy.onnx_function import codes, float_step
from spequant.deploy.onnx_graph import ALIKE, Emitter, Writers, avg_pool, conv_attributes, gemm, mean, pad
from spequant.deploy.operations import (
    Add,
    Affine,
    AvgPool,
    Function,
    Input,
    Mean,
    Mul,
    Operation,
    Pad,
    Quantize,
    Weighted,
)
from spequant.deploy.program import Program


class IntegerGraph(Emitter):
    """As onnxruntime fuses it. sums: the inputs of each addition that is written."""

    def __init__(self, once: bool = False) -> None:
        super().__init__(WRITERS, once)
        self.sums: set[tuple[Operation, ...]] = set()

    def value(self, op: Operation) -> str:
        return self.valued(self.names[op], op)

    def pooled(self, op: Operation) -> str:
        """The value of `op` for an average pooling that does not count its padding."""
        return self.value(op)

    def valued(self, name: str, op: Operation) -> str:
        """The values of what is stored under `name`, in the form of the result of `op`."""
        if op.grid is None:
            return name
        return self.node("DequantizeLinear", [name, *self.scale(op.grid, op.name)], op.name)

    def rounded(self, value: str, grid: Grid, name: str, step: float | None = None) -> str:
        """Float values to stored codes. step: of `value`'s unit; None: the grid's."""
        out = self.node("QuantizeLinear", [value, *self.scale(grid, name, step)], name)
        low, high = grid.low + grid.zero, grid.high + grid.zero
        if (low, high) == (0, 255):
            return out
        ends = [self.constant(np.uint8(end), f"{name}.end") for end in (low, high)]
        return self.node("Clip", [out, *ends], name)

    @classmethod
    def pairs(cls, program: Program) -> dict[Operation, Operation]:
        """{operation: the one of whose codes its own are made}; sums aside: one sum more costs no more than that, and
        where a layer's result has one reader, OpenVINO adds it without rounding it (`formats/openvino.py`)."""
        return {op: fine for op, fine in finer(program).items() if not isinstance(op, Add)}

    def coarser(self, op: Operation, fine: Operation) -> str:
        """The codes of `op`, which follow from those of `fine`."""
        assert op.grid is not None and fine.grid is not None
        return self.rounded(self.counted(fine, op.name), op.grid, op.name, steps_in(op.grid, fine.grid))

    def counted(self, op: Operation, name: str) -> str:
        """The codes of `op` as whole numbers, float, of what is fused with a rounding: a sum with 0 is, QLinearAdd."""
        zero = self.node(
            "DequantizeLinear", [self.constant(np.uint8(0), f"{name}.nothing"), *self._pair(1.0, 0, name)], name
        )
        return self.node("Add", [self.numbers(op, name), zero], name)

    def numbers(self, op: Operation, name: str) -> str:
        """The codes of `op` as whole numbers, float."""
        assert op.grid is not None
        return self.node("DequantizeLinear", [self.names[op], *self._pair(1.0, op.grid.zero, name)], name)

    def emit_program(self, program: Program, taps: Sequence[Operation] = ()) -> None:
        """Of two roundings of which one follows from the other, one; see `alignment.py`."""
        pairs = self.pairs(program)
        for op in computed(program, pairs, taps):
            if op in pairs:
                self.names[op] = self.coarser(op, pairs[op])
            elif op is not program.input:
                self.emit(op)
        for op, fine in pairs.items():
            if fine in self.tensors:  # from which both are read back
                self.tensors[op] = self.tensors[fine]

    def result(self, value: str, op: Operation) -> str:
        return value if op.grid is None else self.rounded(value, op.grid, op.name)

    def tap(self, op: Operation, name: str) -> Any:
        """The value_info of stored codes, or float values."""
        return self.end(op, name, "batch", None if op.grid is None else self.onnx.TensorProto.UINT8)

    def scale(self, grid: Grid, name: str, step: float | None = None) -> list[str]:
        """Of a node that reads or writes stored codes: its scale and its zero point."""
        return self._pair(grid.step if step is None else step, grid.zero, name)

    def _pair(self, step: float, zero: int, name: str) -> list[str]:
        return [self.constant(np.float32(step), f"{name}.step"), self.constant(np.uint8(zero), f"{name}.zero")]


def _quantize(e: IntegerGraph, op: Quantize) -> str:
    """x * rate, as fake quantization has it: x / step differs in its last bit, and pixels, of 256 values, lie on ties
    all together."""
    assert op.grid is not None
    scaled = e.node("Mul", [e.value(op.inputs[0]), e.constant(np.float32(op.grid.rate), f"{op.name}.rate")], op.name)
    return e.rounded(scaled, op.grid, op.name, 1.0)


def _weighted(e: IntegerGraph, op: Weighted) -> str:
    form, name = op.integers, op.name
    weight = e.tensor(op, form.weight.numpy(), f"{name}.weight")
    scale = e.tensor(op, form.scale.numpy(), f"{name}.scale")
    zero = e.constant(np.zeros(len(form.scale), np.int8), f"{name}.zeros")
    weight = e.node("DequantizeLinear", [weight, scale, zero], name, axis=0)
    bias = e.tensor(op, form.bias.numpy(), f"{name}.bias")
    bias_scale = e.constant((op.step * form.scale).numpy(), f"{name}.bias_scale")
    bias_zero = e.constant(np.zeros(len(form.scale), np.int32), f"{name}.bias_zeros")
    bias = e.node("DequantizeLinear", [bias, bias_scale, bias_zero], name, axis=0)
    (source,) = op.inputs
    if not op.spatial:
        parts, ends = [weight, bias], (lambda x: e.valued(x, source), lambda y: e.result(y, op))
        return gemm(e, op, e.names[source], parts, *ends)
    return e.result(e.node("Conv", [e.value(source), weight, bias], name, **conv_attributes(op)), op)


def _affine(e: IntegerGraph, op: Affine) -> str:
    (x,), shape = e.sources(op), (-1, *[1] * (len(op.shape) - 2))
    factor, shift = (e.tensor(op, t.numpy().reshape(shape), f"{op.name}.float") for t in (op.factor, op.shift))
    return e.node("Add", [e.node("Mul", [x, factor], op.name), shift], op.name)


def _add(e: IntegerGraph, op: Add) -> str:
    # Two identical sums would be merged and then have two roundings, which no engine fuses: the second is b + a.
    inputs = op.inputs if op.inputs not in e.sums else op.inputs[::-1]
    e.sums.add(op.inputs)
    return e.result(e.node("Add", [e.value(i) for i in inputs], op.name), op)


def _mul(e: IntegerGraph, op: Mul) -> str:
    return e.result(e.node("Mul", [e.value(i) for i in op.inputs], op.name), op)


def _function(e: IntegerGraph, op: Function) -> str:
    assert op.grid is not None
    step, (source,) = float_step(op), op.inputs
    if step is not None:
        for part in op.parts:
            e.emit(part)
        return e.rounded(e.names[op.parts[-1]], op.grid, op.name, step)
    table, index = codes(op), e.node("Cast", [e.names[source]], op.name, to=e.onnx.TensorProto.INT32)
    assert source.grid is not None
    first = source.grid.low + source.grid.zero
    offsets = np.int32(-first)
    if table.dim() > 1:  # one table for each channel, one after the other
        starts = np.arange(table.shape[1], dtype=np.int32) * len(table)
        offsets = (starts - first).reshape(-1, *[1] * (len(op.shape) - 2)).astype(np.int32)
    if np.any(offsets):
        index = e.node("Add", [index, e.constant(offsets, f"{op.name}.offsets")], op.name)
    flat = table.t().contiguous().flatten() if table.dim() > 1 else table
    return e.node("Gather", [e.constant(flat.numpy(), f"{op.name}.table"), index], op.name, axis=0)


def _pad(e: IntegerGraph, op: Pad) -> str:
    return pad(e, op, np.float32(op.value) if op.grid is None else np.uint8(op.filling + op.grid.zero))


WRITERS: Writers = {
    **ALIKE,
    **onnx_curves.WRITERS,
    Function: _function,
    Input: lambda e, op: e.names[op],
    Quantize: _quantize,
    Weighted: _weighted,
    Affine: _affine,
    Add: _add,
    Mul: _mul,
    Mean: lambda e, op: mean(e, op, e.value(op.inputs[0]), lambda out: e.result(out, op)),
    AvgPool: lambda e, op: e.result(avg_pool(e, op, e.pooled(op.inputs[0])), op),
    Pad: _pad,
}


def integer_graph(
    program: Program,
    *,
    preprocessing: Preprocessing | None = None,
    taps: Sequence[Operation] = (),
    about: Mapping[str, Any] | None = None,
    form: type[IntegerGraph] = IntegerGraph,
) -> Any:
    """The onnx model of `program`: input "input" (batch, ...), output "output" (batch, classes), or several by name.

    Args:
        program: what `lower` makes.
        preprocessing: (mean, std) per channel, of images scaled to [0, 1]: the input is then uint8 images.
        taps: operations whose stored codes, or float values, are outputs, too, "tap0", "tap1" ...
        about: JSON that `read_program` gives back.
        form: how it is written: as onnxruntime fuses it, or as another engine does.

    Raises:
        ModuleNotFoundError: the extra `deploy` is not installed.
    """
    e = form(once=True)
    source, kinds = program.input, e.onnx.TensorProto
    e.names[source] = "input"
    if preprocessing is not None:
        mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in preprocessing)
        pixels = e.node("Cast", ["input"], "input", to=kinds.FLOAT)
        scaled = e.node("Div", [pixels, e.constant(np.float32(255), "input.scale")], "input")
        centred = e.node("Sub", [scaled, e.constant(mean, "input.mean")], "input")
        e.names[source] = e.node("Div", [centred, e.constant(std, "input.std")], "input")
    e.emit_program(program, taps)
    inputs = [e.end(source, "input", "batch", kinds.FLOAT if preprocessing is None else kinds.UINT8)]
    outputs = e.ends(program, "batch")
    outputs |= {e.names[op]: e.tap(op, f"tap{i}") for i, op in enumerate(taps)}
    content = {"program": described(program, e.tensors), "preprocessing": preprocessing, "act_bits": program.act_bits}
    return e.model(inputs, outputs, metadata("integer", content, about))


def op_graph(op: Operation, form: type[IntegerGraph] = IntegerGraph, fine: Operation | None = None) -> Any:
    """One operation on stored codes given as inputs "in0", "in1" ...: what an engine makes of it, forced to these.
    fine: the one from whose codes it is made; None: from its inputs."""
    e = form()
    inputs = []
    for source in dict.fromkeys(op.inputs if fine is None else (fine,)):
        e.names[source] = f"in{len(inputs)}"
        inputs.append(e.tap(source, e.names[source]))
    if fine is None:
        e.emit(op)
    else:
        e.names[op] = e.coarser(op, fine)
    return e.model(inputs, {e.names[op]: e.tap(op, "output")}, {})


def _coded(graph: Any, ops: Iterable[Operation]) -> CodedGraph:
    zero = {op: op.grid.zero for op in ops if op.grid is not None}
    return CodedGraph(graph.SerializeToString(), zero, np.dtype(np.uint8))


def code_graphs(form: type[IntegerGraph]) -> CodeGraphs:
    """Graphs written as `form`, to be compared with the twin."""
    return CodeGraphs(
        lambda program, **options: _coded(integer_graph(program, form=form, **options), program.ops),
        lambda op, fine=None: _coded(op_graph(op, form, fine), (*op.inputs, op) if fine is None else (fine, op)),
        form.pairs,
    )


CODE_GRAPHS = code_graphs(IntegerGraph)


class Onnx(ProgramFormat):
    """Integer ONNX."""

    name, suffix, extension = "onnx", ".onnx", ".onnx"
    help = "integer graph, 8-bit arithmetic"
    engines = "onnxruntime", "openvino"
    runs_in = "onnxruntime, OpenVINO, torch (the integer twin)"
    preprocessing = any_width = True
    graphs = CODE_GRAPHS
    writers = WRITERS

    def content(self, program: Program, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None) -> Any:
        return integer_graph(program, preprocessing=preprocessing, about=about)

    def write(self, draft: Draft, path: Path) -> None:
        write_onnx(draft.content, path)

    def recognised(self, path: Path) -> bool:
        return read_onnx(path)[1]["kind"] == "integer"

    def open(self, path: Path, network: nn.Module | None) -> Loaded:
        model, head = read_onnx(path)
        program = program_in(path, model, head)
        return replace(
            loaded_onnx(path, self.name, self.engines, model, head), program=program, act_bits=tuple(program.act_bits)
        )
