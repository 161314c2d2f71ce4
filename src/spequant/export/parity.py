"""Whether an engine answers as the network that was trained: arg-max, and codes layer by layer.

Two comparisons, so that rounding ties and bugs part. Forced: each op alone is given the twin's codes, and has to give
the twin's. End to end: the whole graph is given images; a tie in an early layer then shows in the later ones.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spequant.batch_norm import modes_kept
from spequant.export import engines
from spequant.export.engines import Run
from spequant.export.integers import saturating
from spequant.export.onnx_file import Preprocessing
from spequant.export.onnx_integer import integer_graph, op_graph, stored
from spequant.export.program import Add, Grid, Input, Op, Program, Weighted
from spequant.export.twin import Twin
from spequant.functional import zero_point
from spequant.layers import QuantizedAdd, QuantizedLayer
from spequant.quantizers.base import Quantizer
from spequant.wording import some_of

AGREEMENT = 0.995
"""Share of equal arg-max below which an export is refused."""
POINTS = 0.1
"""Points of accuracy that it may differ by."""
FEW = 2
"""Images that may differ in any case, ties, but no more than half of them."""
NEAR = 0.25
"""Deviations of the network's values that a single one an image, which has no arg-max, may be off by."""

FORCED = 64  # images that ops are forced to
TIE = 2e-4  # codes: onnxruntime's QLinearAdd has factors of 22 bits, 2^-22 * (255 + 255); fp32 has some 3e-5 at 255

Batch = tuple[Any, Any, Tensor | None]
"""(what the network is given, what the engine is given, labels); tensor and array, or both by name"""


@dataclass
class Codes:
    """Codes of one op: how many there are, and how many are others than the twin's and the network's, end to end.

    torch: None where no layer of the network reads these codes, or one that is called more than once. forced, ties: of
    `Forced`, on the first images.
    """

    name: str
    count: int = 0
    twin: int = 0
    torch: int | None = None
    forced: int = 0
    ties: int = 0


@dataclass(frozen=True)
class Forced:
    """Codes that an engine, given the twin's inputs of one op, computes otherwise: all of them, and those of them that
    are off by one where the twin's number lies half-way between two codes but for `TIE`."""

    unequal: int
    ties: int


@dataclass
class Parity:
    """images; equal: of them with the same arg-max, or the single value within `NEAR`; right: (network, engine) of
    those with labels; codes by op. Where a network answers several questions an image or sentence, or at every
    position, each counts as an image.

    own: images whose arg-max the network itself changes where its float values change by their last bits; counted of
    networks with inputs by name. saturating: layers whose sums of products may pass 16 bits, to which some processors
    clip them.
    """

    images: int = 0
    equal: int = 0
    own: int = 0
    labelled: int = 0
    right: tuple[int, int] = (0, 0)
    codes: list[Codes] = field(default_factory=list)
    saturating: list[str] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        return self.equal / max(1, self.images)

    @property
    def accuracy(self) -> tuple[float, float]:
        """(network, engine), per cent."""
        network, engine = (100 * n / max(1, self.labelled) for n in self.right)
        return network, engine

    def add(self, expected: Tensor, got: np.ndarray, labels: Tensor | None, moved: Tensor | None = None) -> None:
        """Logits of one batch. moved: the network's own with other last bits."""
        if expected.numel() == len(expected):
            ours = None if moved is None else moved.float().cpu()
            return self._add_values(expected.float().cpu(), torch.from_numpy(got), ours)
        a, b = expected.argmax(1).cpu(), torch.from_numpy(got).argmax(1)
        self.own += 0 if moved is None else int((a != moved.argmax(1).cpu()).sum())
        self.images += a.numel()
        self.equal += int((a == b).sum())
        if labels is not None and labels.shape == a.shape:
            self.labelled += a.numel()
            self.right = self.right[0] + int((a == labels.cpu()).sum()), self.right[1] + int((b == labels.cpu()).sum())

    def _add_values(self, expected: Tensor, got: Tensor, moved: Tensor | None) -> None:
        near = NEAR * (expected.std() if len(expected) > 1 else expected.abs().max())
        self.own += 0 if moved is None else int(((expected - moved).abs() > near).sum())
        self.images += len(expected)
        self.equal += int(((expected - got).abs() <= near).sum())

    def check(self, engine: str) -> None:
        """ValueError: an op that computes other codes; more answers that differ than `AGREEMENT` leaves, or twice as
        many as the network's own do with other last bits; accuracies apart by more than `POINTS`."""
        wrong = [f"{c.name} ({c.forced - c.ties})" for c in self.codes if c.forced > c.ties]
        if wrong:
            raise ValueError(
                f"{engine} computes other codes than the integer twin in {', '.join(wrong)}{self._clipped()}"
            )
        few = min(FEW, self.images // 2)
        if self.images - self.equal > max(few, (1 - AGREEMENT) * self.images, 2 * self.own):
            twice = f", or twice the {self.own} on which the network does with other last bits" if self.own else ""
            raise ValueError(
                f"{engine} gives another arg-max than the network on {self.images - self.equal} of {self.images} "
                f"images; expected at most {100 * (1 - AGREEMENT):.1f} %, or {few}{twice}. If its biases are as "
                f"trained, call spequant.export.quantize_biases before measuring and exporting it{self._clipped()}"
            )
        if abs(self.right[0] - self.right[1]) > max(FEW, POINTS / 100 * self.labelled):
            network, other = self.accuracy
            raise ValueError(
                f"{engine} is right on {other:.2f} %, the network on {network:.2f} %; expected at most {POINTS} points"
            )

    def _clipped(self) -> str:
        """What this processor may have to do with it."""
        if not self.saturating or not engines.clips():
            return ""
        return (
            ". This processor has neither VNNI nor dot products and clips sums of 8-bit products to 16 bits, as in "
            f"{some_of(self.saturating)}: export on one that has them, or train the inputs of these layers at 7 "
            "bits (--quant.end-bits 7)"
        )


def forced(program: Program, x: Tensor, start: Callable[[bytes], Run]) -> dict[Op, Forced]:
    """Each op alone, on what the twin has before it for the input `x`. start: of `engines.ENGINES`."""
    twin = Twin(program)
    values = twin.everything(x)
    found = {}
    for op in integer_ops(program):
        assert op.grid is not None
        feed = {f"in{i}": _given(values[s], s.grid) for i, s in enumerate(dict.fromkeys(op.inputs))}
        (got,) = start(op_graph(op).SerializeToString())(feed)
        off = torch.from_numpy(got.astype(np.int32) - stored(values[op], op.grid))
        exact = twin.unrounded(op, [values[i] for i in op.inputs])
        tie = ((exact - exact.floor() - 0.5).abs() < TIE) & (off.abs() == 1)
        found[op] = Forced(int((off != 0).sum()), int(tie.sum()))
    return found


def compare(
    model: nn.Module,
    program: Program,
    run: Run,
    batches: Iterable[Batch],
    start: Callable[[bytes], Run] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Parity:
    """The network `model` and an engine's `run` on the same images, end to end.

    start: of `engines.ENGINES`; with it, the codes of every op too, forced on the first batch and end to end.
    preprocessing: as the engine's graph has it.
    """
    parity, twin, ops = Parity(saturating=saturating(program)), Twin(program), integer_ops(program)
    tapped = None
    if start is not None:
        graph = integer_graph(program, preprocessing=preprocessing, taps=ops)
        tapped = start(graph.SerializeToString())
        parity.codes = [Codes(_label(op)) for op in ops]
    first = True
    for x, given, labels in batches:
        with torch.no_grad(), modes_kept(model), _codes_read(model, program) as read:
            logits = model.eval()(x)
        parity.add(logits, run({"input": given})[0], labels)
        if tapped is None or start is None:
            continue
        values = twin.everything(x.cpu())
        if first:
            first = False
            wrong = forced(program, x[:FORCED].cpu(), start)
            for op, codes in zip(ops, parity.codes, strict=True):
                codes.forced, codes.ties = wrong[op].unequal, wrong[op].ties
        for op, codes, got in zip(ops, parity.codes, tapped({"input": given})[1:], strict=True):
            codes.count += got.size
            codes.twin += _unequal(got, values[op], op)
            if op in read:
                codes.torch = (codes.torch or 0) + _unequal(got, read[op], op)
    return parity


def integer_ops(program: Program) -> list[Op]:
    """Ops whose result is codes."""
    return [op for op in program.ops if op.grid is not None and not isinstance(op, Input)]


def _label(op: Op) -> str:
    assert op.grid is not None
    return f"{op.name} [{op.grid.low}, {op.grid.high}]"


def _given(value: Tensor, grid: Grid | None) -> np.ndarray:
    return value.numpy() if grid is None else stored(value, grid)


def _unequal(got: np.ndarray, expected: Tensor, op: Op) -> int:
    assert op.grid is not None
    return int((got != stored(expected, op.grid)).sum())


@contextmanager
def _codes_read(model: nn.Module, program: Program) -> Iterator[dict[Op, Tensor]]:
    """Inside, a forward of `model` leaves here the codes that its quantizers read, by the op that makes them."""
    found: dict[Op, Tensor] = {}
    handles = []
    for module, (inputs, quantizers) in _readers(model, program).items():

        def keep(_: nn.Module, args: tuple[Tensor, ...], read: tuple = inputs, own: list = quantizers) -> None:
            found.update({i: _codes(q, x).cpu() for i, q, x in zip(read, own, args, strict=False)})

        handles.append(module.register_forward_pre_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _readers(model: nn.Module, program: Program) -> dict[nn.Module, tuple[tuple[Op, ...], list[Quantizer]]]:
    """{module: (ops that make the codes it reads, its quantizers)}, of modules that are called once."""
    modules = dict(model.named_modules())
    found: dict[nn.Module, tuple[tuple[Op, ...], list[Any]]] = {}
    several = set()
    for op in program.ops:
        module = modules.get(op.name)
        if isinstance(op, Weighted) and isinstance(module, QuantizedLayer):
            quantizers: list[Any] = [module.act_quantizer]
        elif isinstance(op, Add) and isinstance(module, QuantizedAdd):
            quantizers = [module.branch_quantizer, module.shortcut_quantizer]
        else:
            continue
        if module in found and found[module][0] != op.inputs:
            several.add(module)
        found[module] = op.inputs, quantizers
    return {module: read for module, read in found.items() if module not in several}


def _codes(q: Quantizer, x: Tensor) -> Tensor:
    return q.encode(x) - zero_point(*q.bounds(x), q.levels)
