"""How codes lie in a .tflite graph, and what all of its operations are written with.

A code c is stored as c + zero, in int8. Few levels cost no operator: `zero` is chosen so that one end of a grid is an
end of int8, to which every kernel clips, and a fused activation clips to the other: RELU at code 0; RELU_N1_TO_1 and
RELU6 at the code that the tensor's scale calls 1 or 6. A scale is only a name where layers read the codes, since the
scales of their weights make up for it; additions and float operators need the grid's own step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spequant.deploy.grids import Grid
from spequant.deploy.operations import Operation
from spequant.deploy.requantization import LAST_BITS
from spequant.deploy.tflite_graph import FLOAT, INT8, TfliteGraph

NONE, RELU, N1_TO_1, RELU6 = "NONE", "RELU", "RELU_N1_TO_1", "RELU6"


def channels_last(shape: Sequence[int]) -> list[int]:
    """Of a tensor in the graph: (1, C, H, W) as (1, H, W, C), (1, C, L) as (1, 1, L, C), (1, C) as it is."""
    batch, channels, *positions = shape
    return [batch, *([1] if len(positions) == 1 else []), *positions, channels]


def end_shape(shape: Sequence[int]) -> list[int]:
    """Of an input or output of the graph, channels last: (1, C, L) as (1, L, C)."""
    return [shape[0], *shape[2:], shape[1]]


def zeros(ops: Sequence[Operation]) -> dict[Operation, int]:
    """What is stored for code 0, of each of `ops` with a grid: the same for all of them that are joined unchanged."""
    group = {op: {op} for op in ops if op.grid is not None}
    for op in list(group):
        if op.COMMUTES:
            together = group[op].union(*(group[i] for i in op.inputs if i in group))
            group.update(dict.fromkeys(together, together))
    return {op: _zero([o.grid for o in members if o.grid is not None]) for op, members in group.items()}


def _zero(grids: Sequence[Grid]) -> int:
    """The end of `grids` that is farther from code 0 becomes an end of int8: the upper one, if both are as far."""
    low, high = min(grid.low for grid in grids), max(grid.high for grid in grids)
    return min(127 - high, 127) if low >= 0 or -low >= high else -128 - low


@dataclass(frozen=True)
class Clip:
    """How codes are kept in a grid: a fused activation that does it at the scale `unit`; None: only operators do."""

    activation: str | None
    unit: np.float32


def clip(grid: Grid, zero: int) -> Clip:
    low, high, step = grid.low, grid.high, np.float32(grid.step)
    lowest, highest = low + zero == -128, high + zero == 127
    if lowest and highest:
        return Clip(NONE, step)
    if low == 0 and highest:
        return Clip(RELU, step)
    if low < 0 and (-low == high or (-low > high and highest) or (-low < high and lowest)):
        return Clip(N1_TO_1, np.float32(1 / max(-low, high)))
    return Clip(RELU6, np.float32(6 / high)) if low == 0 else Clip(None, step)


def spread_of(grid: Grid) -> int:
    """How many times as large codes of `grid` may be stored."""
    return 255 // max(1, grid.high - grid.low)


class TfliteEmitter:
    """tensors: of each operation's result, codes or float. zero: what is stored for code 0. output: the operation whose
    result leaves the graph. int4: whether weights that fit 4 bits are packed.

    unequal: {operation: {engine: sums, or pairs of codes, to which it gives another code than the twin}}. scaled: of
    codes that were rounded from float, whole numbers whose ends QUANTIZE clips; wholes: the codes in float.
    """

    def __init__(
        self,
        writers: "TfliteWriters",
        ops: Sequence[Operation],
        output: Operation | None = None,
        int4: bool = False,
    ) -> None:
        self.graph, self.writers, self.int4 = TfliteGraph(), writers, int4
        self.output, self.zero = output, zeros(ops)
        self.tensors: dict[Operation, int] = {}
        self.floats: dict[Operation, int] = {}
        self.at_steps: dict[Operation, int] = {}
        self.scaled: dict[Operation, int] = {}
        self.wholes: dict[Operation, int] = {}
        self.spreads: dict[tuple[Operation, int], int] = {}
        self.unequal: dict[Operation, dict[str, int]] = {}

    def emit(self, op: Operation) -> None:
        """Add `op`, whose inputs are there."""
        self.tensors[op] = self.writers[type(op)](self, op)

    def unequal_by_name(self) -> dict[str, dict[str, int]]:
        """Those of `unequal` that are not 0."""
        assert all(op.grid is not None for op in self.unequal)
        label = {op: f"{op.name} [{op.grid.low}, {op.grid.high}]" for op in self.unequal if op.grid is not None}
        return {label[op]: counts for op, counts in self.unequal.items() if any(counts.values())}

    def like(self, op: Operation, shape: Sequence[int] | None = None, source: int | None = None) -> int:
        """A new tensor for the result of `op`, or of `shape`, with type and scale of `source`; None: float."""
        shape = channels_last(op.shape) if shape is None else shape
        if source is None or self.graph.kind(source) == FLOAT:
            return self.graph.tensor(op.name, shape, FLOAT)
        kind, scale, zero = self.graph.kind(source), self.graph.scale(source), self.graph.zero(source)
        return self.graph.tensor(op.name, shape, kind, scale, zero)

    def codes(self, op: Operation, unit: np.float32, shape: Sequence[int] | None = None) -> int:
        """A new tensor of codes of `op`."""
        shape = channels_last(op.shape) if shape is None else shape
        return self.graph.tensor(op.name, shape, INT8, unit, self.zero[op])

    def at_step(self, op: Operation) -> int:
        """The codes of `op` in a tensor whose scale is their step: the same numbers, under the name that they have."""
        assert op.grid is not None
        source, step = self.tensors[op], np.float32(op.grid.step)
        if self.graph.scale(source) == step:
            return source
        if op not in self.at_steps:
            self.at_steps[op] = self.renamed(op, source, step, NONE)
        return self.at_steps[op]

    def near_step(self, op: Operation) -> int:
        """As `at_step`; the last bits of its scale may be others, as of a sum."""
        assert op.grid is not None
        source = self.tensors[op]
        return source if abs(self.graph.scale(source) / op.grid.step - 1) < LAST_BITS * 2.0**-22 else self.at_step(op)

    def renamed(self, op: Operation, source: int, unit: np.float32, activation: str) -> int:
        """The codes in `source` with another scale: times the code 1, whose own scale is the quotient of the two."""
        one = self.graph.constant(op.name, np.ones(1, np.int8), unit / self.graph.scale(source))
        out = self.codes(op, unit)
        return self.graph.node("MUL", [source, one], out, fusedActivationFunction=self.activation(activation))

    def spread(self, op: Operation, times: int) -> int:
        """The codes of `op` stored `times` as large, so that sums of products with them are, too."""
        assert op.grid is not None
        if (op, times) not in self.spreads:
            source = self.tensors[op]
            inputs = [source, self.graph.constant(op.name, np.ones(1, np.int8), 1.0)]
            zero, unit = -128 - times * op.grid.low, self.graph.scale(source) / np.float32(times)
            out = self.graph.tensor(op.name, self.graph.shape(source), INT8, unit, zero)
            self.graph.node("MUL", inputs, out, fusedActivationFunction=self.activation(NONE))
            self.spreads[op, times] = out
        return self.spreads[op, times]

    def value(self, op: Operation) -> int:
        """The float values of an operation's result."""
        if op.grid is None:
            return self.tensors[op]
        if op not in self.floats:
            self.floats[op] = self.graph.node("DEQUANTIZE", [self.at_step(op)], self.like(op))
        return self.floats[op]

    def sources(self, op: Operation) -> list[int]:
        """What `op` reads: codes where its own result is codes, else values."""
        return [self.value(i) if op.grid is None else self.tensors[i] for i in op.inputs]

    def activation(self, name: str) -> int:
        return getattr(self.graph.schema.ActivationFunctionType, name)

    def number(self, op: Operation, value: Any) -> int:
        return self.graph.constant(op.name, np.asarray(value, np.float32))

    def reshaped(self, op: Operation, source: int, shape: Sequence[int]) -> int:
        """With the batch, whatever it is, as it was."""
        target = np.asarray([-1, *shape[1:]], np.int32)
        inputs = [source, self.graph.constant(op.name, target)]
        return self.graph.node("RESHAPE", inputs, self.like(op, shape, source), newShape=target)

    def number_like(self, op: Operation, source: int, value: float) -> int:
        """A constant of one number, of the type of `source`; of codes with its scale and zero."""
        if self.graph.kind(source) == FLOAT:
            return self.graph.constant(op.name, np.asarray([value], np.float32))
        scale, zero = self.graph.scale(source), self.graph.zero(source)
        return self.graph.constant(op.name, np.asarray([value], np.int8), scale, zero=zero)

    def between(self, op: Operation, source: int, low: float | None, high: float | None) -> int:
        """Clipped by operators. low, high: None: no end."""
        for kind, end in (("MAXIMUM", low), ("MINIMUM", high)):
            if end is not None:
                inputs = [source, self.number_like(op, source, end)]
                source = self.graph.node(kind, inputs, self.like(op, None, source))
        return source

    def clipped(self, op: Operation, source: int) -> int:
        """Codes in `source`, which fill int8, as those of the grid of `op`: by operators."""
        assert op.grid is not None
        low, high = op.grid.low + self.zero[op], op.grid.high + self.zero[op]
        return self.between(op, source, low if low > -128 else None, high if high < 127 else None)

    def least(self, op: Operation) -> int:
        """The fused activation that keeps float values above the lowest code of `op` where that is 0."""
        assert op.grid is not None
        return self.activation(RELU if op.grid.low == 0 else NONE)

    def rounded(self, op: Operation, scaled: int) -> int:
        """Float values in units of codes, behind `least`, as codes of the scale 1. ROUND takes ties to the even code;
        QUANTIZE does so in LiteRT only."""
        assert op.grid is not None
        zero, low, high = self.zero[op], op.grid.low, op.grid.high
        least, most = low if low and low + zero > -128 else None, high if high + zero < 127 else None
        clipped = self.between(op, scaled, least, most)
        self.scaled[op] = self.graph.node("ROUND", [clipped], self.like(op))
        return self.graph.node("QUANTIZE", [self.scaled[op]], self.codes(op, np.float32(1)))

    def whole(self, op: Operation) -> int:
        """The codes that `rounded` gave, or that the graph is given, in float."""
        assert op.grid is not None
        if op not in self.wholes:
            if op in self.scaled:
                self.wholes[op] = self.between(op, self.scaled[op], op.grid.low or None, op.grid.high)
            else:
                self.wholes[op] = self.graph.node("DEQUANTIZE", [self.tensors[op]], self.like(op))
        return self.wholes[op]

    def padded(self, op: Operation, source: int, padding: Sequence[int], lowest: bool = False) -> int:
        """With zeros around, or with the lowest number, which is the largest of no window."""
        if not any(padding):
            return source
        shape = self.graph.shape(source)
        sides = [0] * (3 - len(padding)) + list(padding) + [0]
        inputs = [source, self.graph.constant(op.name, np.asarray([[side, side] for side in sides], np.int32))]
        out = self.like(op, [n + 2 * side for n, side in zip(shape, sides, strict=True)], source)
        if not lowest:
            return self.graph.node("PAD", inputs, out)
        least = -128 if self.graph.kind(source) == INT8 else float(np.finfo(np.float32).min)
        return self.graph.node("PADV2", [*inputs, self.number_like(op, source, least)], out)


TfliteWriters = Mapping[type[Operation], Callable[[Any, Any], int]]
"""{operation: what adds its nodes to an emitter and gives the tensor of the result}"""
