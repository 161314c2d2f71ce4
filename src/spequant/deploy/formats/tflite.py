"""The integer program for LiteRT and TensorFlow Lite Micro: int8 operators on codes, channels last.

How codes lie in tensors: `tflite_emitter.py`; layers: `tflite_layers.py`; why two engines that round in two ways give
the same codes: `requantization.py`; the file: `tflite_file.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from spequant.deploy.alignment import computed, finer, steps_in
from spequant.deploy.code_graphs import CodedGraph, CodeGraphs
from spequant.deploy.cost import program_costs
from spequant.deploy.formats.format import Draft, ProgramFormat
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.operations import FloatLayer, Input, Operation, Quantize, Weighted
from spequant.deploy.program import Program
from spequant.deploy.requantization import unsearched
from spequant.deploy.tflite_emitter import NONE, TfliteEmitter, TfliteWriters, end_shape, nhwc
from spequant.deploy.tflite_file import metadata, read_head, read_tflite, with_labels, write_tflite
from spequant.deploy.tflite_layers import float_layer, weighted
from spequant.deploy.tflite_moves import MOVE_WRITERS
from spequant.deploy.tflite_nodes import FLOAT, INT8, UINT8
from spequant.deploy.tflite_pointwise import POINTWISE
from spequant.deploy.tflite_windows import WINDOW_WRITERS


def _quantize(e: TfliteEmitter, op: Quantize) -> int:
    """x * rate, as fake quantization has it: x / step differs in its last bit."""
    assert op.grid is not None
    inputs = [e.value(op.inputs[0]), e.number(op, op.grid.rate)]
    return e.rounded(op, e.graph.node("MUL", inputs, e.like(op), fusedActivationFunction=e.least(op)))


WRITERS: TfliteWriters = {
    Input: lambda e, op: e.tensors[op],
    Quantize: _quantize,
    Weighted: weighted,
    FloatLayer: float_layer,
    **POINTWISE,
    **WINDOW_WRITERS,
    **MOVE_WRITERS,
}


def _coarser(e: TfliteEmitter, op: Operation, fine: Operation) -> int:
    """The codes of `op`, which follow from those of `fine`: these by the number of its steps in one."""
    assert op.grid is not None and fine.grid is not None
    how, source, count = e.clip(op), e.tensors[fine], steps_in(op.grid, fine.grid)
    assert count is not None
    most, shape = np.asarray([127], np.int8), e.graph.shape(source)  # a large factor, since an engine rounds twice
    by = e.graph.constant(op.name, most, how.unit / (e.graph.scale(source) * np.float32(127 * count)))
    out = e.unclipped(op, how, how.unit, shape)
    e.graph.node("MUL", [source, by], out, fusedActivationFunction=e.activation(how.activation or NONE))
    e.orders[op] = e.order(fine)
    return e.clipped(op, out, how)


def _entered(e: TfliteEmitter, op: Operation, end: int) -> int:
    """An input of the graph, of `end_shape`, as the graph has it."""
    return e.reshaped(op, end, nhwc(op.shape)) if len(op.shape) == 3 else end


def _left(e: TfliteEmitter, op: Operation, tensor: int, ends: Iterable[int]) -> int:
    """A tensor of the graph as an output of it; a copy of one that is among its `ends` already."""
    return e.reshaped(op, tensor, end_shape(op.shape)) if len(op.shape) == 3 or tensor in ends else tensor


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
    micro: bool = False,
) -> CodedGraph:
    """The .tflite model of `program`: input "input", output "output" or several by name, for one sample, which the
    engine may change.

    All are channels last: (1, height, width, channels) of what torch has as (1, channels, height, width).

    Args:
        program: what `lower` makes.
        preprocessing: (mean, std) per channel, of images scaled to [0, 1]: the input is then uint8 images.
        taps: operations whose stored codes are outputs, too, "tap0", "tap1" ...
        about: JSON that `read_tflite` gives back.
        micro: whether it is for microcontrollers: weights of convolutions that fit 4 bits packed, two in a byte, and
            functions as tables.

    Raises:
        ModuleNotFoundError: the extra `tflite` is not installed.
        ValueError: a layer that has no form in it, by name.
    """
    e = TfliteEmitter(WRITERS, program.ops, program.outputs.values(), micro)
    source = program.input
    shape, kind = end_shape(source.shape), FLOAT if preprocessing is None else UINT8
    end = e.graph.tensor("input", shape, kind, None if preprocessing is None else 1.0)
    x = end if preprocessing is None else _normalised(e, source, end, preprocessing)
    e.tensors[source] = _entered(e, source, x)
    pairs = finer(program)
    for op in computed(program, pairs, taps):
        if op in pairs:
            e.tensors[op] = _coarser(e, op, pairs[op])
        elif op is not source:
            e.emit(op)
    outputs: dict[str, int] = {}
    for name, op in program.outputs.items():
        outputs[name] = _left(e, op, e.value(op), [end, *outputs.values()])
    for i, op in enumerate(taps):
        outputs[f"tap{i}"] = _left(e, op, e.stored(op), [end, *outputs.values()])
    head = {
        "kind": "tflite4" if micro else "tflite",
        "preprocessing": preprocessing,
        "act_bits": program.act_bits,
        "unequal": e.unequal_by_name(),
        "outputs": list(program.outputs),
    }
    head["layers"] = [asdict(cost) for cost in program_costs(program)]
    model = e.graph.model({"input": end}, outputs, metadata(head, about, source.shape))
    return CodedGraph(with_labels(model, about), e.zero, INT8)


def op_graph(op: Operation, fine: Operation | None = None, micro: bool = False) -> CodedGraph:
    """One operation on stored codes given as inputs "in0", "in1" ...: what an engine makes of it, forced to these.
    fine: the one from whose codes it is made; None: from its inputs."""
    sources = list(dict.fromkeys(op.inputs)) if fine is None else [fine]
    e = TfliteEmitter(WRITERS, [*sources, op], micro=micro)
    inputs = {}
    for i, source in enumerate(sources):
        shape = end_shape(source.shape)
        if source.grid is None:
            end = e.graph.tensor("in", shape, FLOAT)
        else:
            unit = 1 if isinstance(source, Quantize) else source.grid.step  # as `_quantize` has it
            end = e.codes(source, np.float32(unit), shape)
        inputs[f"in{i}"], e.tensors[source] = end, _entered(e, source, end)
    if fine is None:
        e.emit(op)
    else:
        e.tensors[op] = _coarser(e, op, fine)
    return CodedGraph(e.graph.model(inputs, {"output": _left(e, op, e.stored(op), inputs.values())}, {}), e.zero, INT8)


class _Trying(TfliteEmitter):
    """refusals: (name, why not) of each operation that cannot be written, in whose place stands a tensor like its
    result. What a layer's bias would be decides no refusal, and takes most of the time: it is not searched."""

    requantized = staticmethod(unsearched)

    def __init__(self, program: Program, micro: bool) -> None:
        super().__init__(WRITERS, program.ops, program.outputs.values(), micro)
        self.refusals: list[tuple[str, str]] = []
        end = self.graph.tensor("input", end_shape(program.input.shape), FLOAT)
        self.tensors[program.input] = _entered(self, program.input, end)

    def emit(self, op: Operation) -> None:
        try:
            if type(op) in self.writers:
                return super().emit(op)
        except ValueError as error:
            self.refusals.append((op.name, str(error).removeprefix(f"{op.name}: ")))
        self.tensors[op] = self.like(op) if op.grid is None else self.codes(op, np.float32(op.grid.step))


class Tflite(ProgramFormat):
    """LiteRT's files."""

    name, suffix, extension = "tflite", ".tflite", ".tflite"
    help = "int8 graph for phones and microcontrollers"
    engines = "litert", "tflm"
    runs_in = "LiteRT, TensorFlow Lite Micro"
    preprocessing = True
    graphs = CodeGraphs(tflite_graph, op_graph, finer)
    writers = WRITERS
    micro: ClassVar[bool] = False
    """whether graphs are for microcontrollers"""

    def content(self, program: Program, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None) -> Any:
        return tflite_graph(program, preprocessing=preprocessing, about=about, micro=self.micro).data

    def faults(self, program: Program) -> list[tuple[str, str]]:
        e = _Trying(program, self.micro)
        for op in program.ops[1:]:
            e.emit(op)
        return e.refusals

    def write(self, draft: Draft, path: Path) -> None:
        write_tflite(draft.content, path)

    def recognised(self, path: Path) -> bool:
        return read_head(path)["kind"] == self.name

    def open(self, path: Path, network: nn.Module | None) -> Loaded:
        return read_tflite(path, self.name, self.engines)


class TfliteInt4(Tflite):
    """The same for microcontrollers: smaller, functions as tables; on phones slower."""

    name, suffix = "tflite4", ".int4.tflite"
    help = "the same, weights that fit 4 bits in half a byte"
    graphs = CodeGraphs(partial(tflite_graph, micro=True), partial(op_graph, micro=True), finer)
    micro = True
