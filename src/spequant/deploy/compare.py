"""An engine's answers, values and codes next to those of the network and of the integer twin.

Two comparisons of codes, so that rounding ties and bugs part. Forced: each operation on its own is given the twin's
codes, and has to give the twin's. End to end: the whole graph is given images; a tie in an early layer then shows in
the later ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spequant.calibration.batches import answer
from spequant.deploy.biases import off_grid
from spequant.deploy.code_graphs import CodeGraphs
from spequant.deploy.engines import Run
from spequant.deploy.formats.onnx import CODE_GRAPHS
from spequant.deploy.last_bits import other_last_bits
from spequant.deploy.loaded import Preprocessing
from spequant.deploy.operations import Add, Operation, Weighted
from spequant.deploy.outputs import outputs_by_name
from spequant.deploy.parity import CodeCount, Parity, ParityBatch
from spequant.deploy.program import Program
from spequant.deploy.twin import Twin
from spequant.functional import without_autocast, zero_point
from spequant.layers import QuantizedAdd, QuantizedLayer
from spequant.quantizers.base import Quantizer

FORCED = 64  # images that ops are forced to
TIE = 2e-4  # codes: onnxruntime's QLinearAdd has factors of 22 bits, 2^-22 * (255 + 255); fp32 has some 3e-5 at 255


@dataclass(frozen=True)
class Forced:
    """Codes that an engine, given the twin's inputs of one op, computes otherwise: all of them, and those of them that
    are off by one where the twin's number lies half-way between two codes but for `TIE`."""

    unequal: int
    ties: int


@torch.no_grad()
def forced(
    program: Program,
    x: Tensor,
    start: Callable[[bytes], Run],
    graphs: CodeGraphs = CODE_GRAPHS,
    entry: tuple[np.ndarray, Preprocessing] | None = None,
    values: Mapping[Operation, Tensor] | None = None,
) -> dict[Operation, Forced]:
    """Each operation on its own, on what the twin has before it for the input `x`, where the format makes it of that;
    else on the twin's codes of the finer one that it is made of. start: of `engines.ENGINES`. entry: (images that
    become `x`, their preprocessing), where that is in the graph. values: what the twin has, if that is known."""
    values = Twin(program).everything(x) if values is None else values
    wrong = {}
    for op, got, expected in _on_its_own(program, values, start, graphs, entry):
        off = torch.from_numpy(got.astype(np.int32) - expected)
        if not off.any():
            wrong[op] = Forced(0, 0)
            continue
        exact = op.compute([values[i] for i in op.inputs])
        tie = ((exact - exact.floor() - 0.5).abs() < TIE) & (off.abs() == 1)
        wrong[op] = Forced(int((off != 0).sum()), int(tie.sum()))
    return wrong


def _on_its_own(
    program: Program,
    values: Mapping[Operation, Tensor],
    start: Callable[[bytes], Run],
    graphs: CodeGraphs,
    entry: tuple[np.ndarray, Preprocessing] | None,
) -> Iterator[tuple[Operation, np.ndarray, np.ndarray]]:
    """(operation, codes that an engine gives it when it is given the twin's before it, the twin's)."""
    if graphs.one is None:
        x, preprocessing = (values[program.input].numpy(), None) if entry is None else entry
        whole = graphs.whole(program, preprocessing=preprocessing, taps=program.integer_ops)
        taps = program.integer_ops if whole.taps is None else whole.taps
        stored = [whole.stored(values[op], op) for op in taps]
        feed = {f"tap{i}": codes for i, codes in enumerate(stored)}
        got = start(whole.data)({"input": x, **feed})
        yield from zip(taps, got[len(program.outputs) :], stored, strict=True)
        return
    pairs = graphs.pairs(program)
    for op in program.integer_ops:
        fine = [pairs[op]] if op in pairs else []
        graph, sources = graphs.one(op, *fine), fine or op.inputs
        feed = {f"in{i}": graph.stored(values[s], s) for i, s in enumerate(dict.fromkeys(sources))}
        (codes,) = start(graph.data)(feed)
        yield op, codes, graph.stored(values[op], op)


@without_autocast
def compare_answers(
    model: nn.Module,
    program: Program,
    run: Run,
    batches: Iterable[ParityBatch],
    start: Callable[[bytes], Run] | None = None,
    preprocessing: Preprocessing | None = None,
    graphs: CodeGraphs = CODE_GRAPHS,
) -> Parity:
    """The network `model` and an engine's `run` on the same images, end to end.

    Args:
        model: the network; it stays as it is.
        program: what `lower` makes of it.
        run: an engine's, of a graph with the input "input".
        batches: inputs of the network and of the engine, and labels (`inputs.as_batches`).
        start: of `engines.ENGINES`; with it, the codes of every operation are compared too, forced on the first batch
            and end to end.
        preprocessing: as the engine's graph has it.
        graphs: what `start` is given; those of the format of `run`.

    Returns:
        What came of it; `Parity.check` judges it.
    """
    parity = Parity(saturating=program.saturating(), off_grid=off_grid(program))
    seen = 0
    twin, ops = Twin(program), program.integer_ops
    tapped = coded = None
    if start is not None:
        coded = graphs.whole(program, preprocessing=preprocessing, taps=ops)
        ops = ops if coded.taps is None else list(coded.taps)
        tapped = start(coded.data)
        parity.codes = [CodeCount(_label(op)) for op in ops]
    first = True
    for x, feed, labels in batches:
        with _codes_read(model, program) as read:
            expected, moved = outputs_by_name(answer(model, x), ("input",)), dict[str, Tensor]()
        if seen < FORCED:
            with other_last_bits(model):
                moved = outputs_by_name(answer(model, x), ("input",))
        seen += len(x)
        for (name, value), got in zip(expected.items(), run({"input": feed}), strict=True):
            parity.add(value, got, labels, moved.get(name), output=name, choices=False)
        if tapped is None or coded is None or start is None:
            continue
        values = twin.everything(x.cpu())
        if first:
            first = False
            entry = None if preprocessing is None else (feed[:FORCED], preprocessing)
            some = {op: value[: FORCED * op.shape[0]] for op, value in values.items()}
            wrong = forced(program, x[:FORCED].cpu(), start, graphs, entry, some)
            for op, codes in zip(ops, parity.codes, strict=True):
                codes.forced, codes.ties = wrong[op].unequal, wrong[op].ties
        for op, codes, got in zip(ops, parity.codes, tapped({"input": feed})[len(program.outputs) :], strict=True):
            codes.count += got.size
            codes.twin += int((got != coded.stored(values[op], op)).sum())
            if op in read and read[op].shape == got.shape:  # not where a layer takes in the zeros put around its input
                codes.torch = (codes.torch or 0) + int((got != coded.stored(read[op], op)).sum())
    return parity


def _label(op: Operation) -> str:
    assert op.grid is not None
    return f"{op.name} [{op.grid.low}, {op.grid.high}]"


@contextmanager
def _codes_read(model: nn.Module, program: Program) -> Iterator[dict[Operation, Tensor]]:
    """Inside, a forward of `model` leaves here the codes that its quantizers read, by the op that makes them."""
    codes: dict[Operation, Tensor] = {}
    handles = []
    for module, (inputs, quantizers) in _readers(model, program).items():

        def keep(_: nn.Module, args: tuple[Tensor, ...], read: tuple = inputs, by: list = quantizers) -> None:
            codes.update({i: _codes(q, x).cpu() for i, q, x in zip(read, by, args, strict=False)})

        handles.append(module.register_forward_pre_hook(keep))
    try:
        yield codes
    finally:
        for handle in handles:
            handle.remove()


def _readers(model: nn.Module, program: Program) -> dict[nn.Module, tuple[tuple[Operation, ...], list[Quantizer]]]:
    """{module: (ops that make the codes it reads, its quantizers)}, of modules that are called once."""
    modules = dict(model.named_modules())
    readers: dict[nn.Module, tuple[tuple[Operation, ...], list[Any]]] = {}
    several = set()
    for op in program.ops:
        module = modules.get(op.name)
        if isinstance(op, Weighted) and isinstance(module, QuantizedLayer):
            quantizers: list[Any] = [module.act_quantizer]
        elif isinstance(op, Add) and isinstance(module, QuantizedAdd):
            quantizers = [module.branch_quantizer, module.shortcut_quantizer]
        else:
            continue
        if module in readers and readers[module][0] != op.inputs:
            several.add(module)
        readers[module] = op.inputs, quantizers
    return {module: read for module, read in readers.items() if module not in several}


def _codes(q: Quantizer, x: Tensor) -> Tensor:
    return q.encode(x) - zero_point(*q.grid_bounds(x), q.levels)
