"""How codes lie in a .tflite graph, and what all of its operations are written with.

A code c is stored as c + zero, in int8. Few levels cost no operator: `zero` is chosen so that one end of a grid is an
end of int8, to which every kernel clips, and a fused activation clips to the other: RELU at code 0; RELU_N1_TO_1 and
RELU6 at the code that the tensor's scale calls 1 or 6. A scale is only a name where layers read the codes, since the
scales of their weights make up for it; additions and float operators need the grid's own step. So codes of -127 to 127
that these read are clipped by QUANTIZE: it stores them by one smaller, which leaves -128 where it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spequant.deploy.grids import Grid
from spequant.deploy.operations import Add, Mul, Operation, Weighted
from spequant.deploy.operations.windows import sides
from spequant.deploy.requantization import LAST_BITS, Requantization, requantized
from spequant.deploy.tflite_nodes import FLOAT, INT8, TfliteGraph
from spequant.deploy.tflite_order import Order, laid, last, moving, place, regrouped, runs_of_order

NONE, RELU, N1_TO_1, RELU6 = "NONE", "RELU", "RELU_N1_TO_1", "RELU6"


MOST_DIMENSIONS = 5
"""That TRANSPOSE of TensorFlow Lite Micro takes."""


def nhwc(shape: Sequence[int]) -> list[int]:
    """Of a tensor in the graph: (1, C, H, W) as (1, H, W, C), (1, C, L) as (1, 1, L, C), (1, C) as it is."""
    return laid(shape, last(len(shape)))


def end_shape(shape: Sequence[int]) -> list[int]:
    """Of an input or output of the graph, channels last: (1, C, L) as (1, L, C)."""
    return [shape[d] for d in last(len(shape))]


def zeros(ops: Sequence[Operation]) -> dict[Operation, int]:
    """What is stored for code 0, of each of `ops` with a grid: the same for all of them that are joined unchanged."""
    group = {op: {op} for op in ops if op.grid is not None}
    for op in list(group):
        if op.COMMUTES:
            together = group[op].union(*(group[i] for i in op.inputs if i in group))
            group.update(dict.fromkeys(together, together))
    lower = at_their_step(ops)
    return {op: _zero([o.grid for o in g if o.grid is not None], not lower.isdisjoint(g)) for op, g in group.items()}


def _zero(grids: Sequence[Grid], lower: bool) -> int:
    """The end of `grids` that is farther from code 0 becomes an end of int8: the `lower` one or not, if both are as
    far."""
    low, high = min(grid.low for grid in grids), max(grid.high for grid in grids)
    return min(127 - high, 127) if low >= 0 or -low > high or (-low == high and not lower) else -128 - low


def at_their_step(ops: Sequence[Operation]) -> frozenset[Operation]:
    """Of sums, those of codes of -127 to 127 that others than layers read, which need their own step."""
    layers, others = ({i for op in ops if isinstance(op, Weighted) == one for i in op.inputs} for one in (True, False))
    sums = (op for op in ops if isinstance(op, Weighted | Add | Mul) and op.grid is not None)
    return frozenset(
        op for op in sums if op.grid and -op.grid.low == op.grid.high == 127 and (op in others or op not in layers)
    )


Ends = Sequence[tuple[int, int]]
"""(before, after) each dimension of the graph."""


def ends_of(padding: Sequence[int], spatial: int) -> Ends:
    """Of `padding` of an operation on one or two positions, in a graph, where there are two, and channels last."""
    around = list(zip(*sides(padding, spatial), strict=True))
    return [(0, 0), *[(0, 0)] * (2 - spatial), *around, (0, 0)]


def is_same(ends: Ends, sizes: Sequence[int], spans: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether padding is the one that engines call SAME: as many windows of `spans` as strides begin in `sizes`."""
    for (before, after), n, span, step in zip(ends[1:3], sizes, spans, stride, strict=True):
        total = max(0, (-(-n // step) - 1) * step + span - n)
        if (before, after) != (total // 2, total - total // 2):
            return False
    return True


@dataclass(frozen=True)
class Clip:
    """How codes are kept in a grid: a fused activation that does it at the scale `unit`; None: only operators do.
    shifted: whether QUANTIZE does, from codes that are stored one larger."""

    activation: str | None
    unit: np.float32
    shifted: bool = False


def clip(grid: Grid, zero: int, at_step: bool = False) -> Clip:
    """at_step: whether the scale has to be the grid's own."""
    low, high, step = grid.low, grid.high, np.float32(grid.step)
    lowest, highest = low + zero == -128, high + zero == 127
    if lowest and highest:
        return Clip(NONE, step)
    if at_step and lowest and high + zero == 126:
        return Clip(NONE, step, shifted=True)
    if low == 0 and highest:
        return Clip(RELU, step)
    if low < 0 and (-low == high or (-low > high and highest) or (-low < high and lowest)):
        return Clip(N1_TO_1, np.float32(1 / max(-low, high)))
    return Clip(RELU6, np.float32(6 / high)) if low == 0 else Clip(None, step)


def is_near(unit: float, other: float) -> bool:
    """But for last bits of a scale."""
    return abs(unit / other - 1) < LAST_BITS * 2.0**-22


class TfliteEmitter:
    """tensors: of each operation's result, codes or float, as it lies; orders: of those that are not channels last.
    zero: what is stored for code 0. outputs: the operations whose results leave the graph. micro: whether the graph is
    for microcontrollers: weights that fit 4 bits packed, functions as tables.

    unequal: {operation: {engine: sums, or pairs of codes, to which it gives another code than the twin}}. scaled: of
    codes that were rounded from float, whole numbers whose ends QUANTIZE clips; wholes: the codes in float. sums: the
    additions of codes that read an operation's. requantized: makes scales and biases of a layer.
    """

    requantized: Callable[..., Requantization] = staticmethod(requantized)

    def __init__(
        self,
        writers: "TfliteWriters",
        ops: Sequence[Operation],
        outputs: Iterable[Operation] = (),
        micro: bool = False,
    ) -> None:
        self.graph, self.writers, self.micro = TfliteGraph(), writers, micro
        self.outputs, self.zero, self.at_their_step = frozenset(outputs), zeros(ops), at_their_step(ops)
        self.tensors: dict[Operation, int] = {}
        self.orders: dict[Operation, Order] = {}
        self.ordered: dict[tuple[int, Order], int] = {}
        self.floats: dict[Operation, int] = {}
        self.at_steps: dict[Operation, int] = {}
        self.scaled: dict[Operation, int] = {}
        self.wholes: dict[Operation, int] = {}
        self.spreads: dict[tuple[int, int], int] = {}
        self.unequal: dict[Operation, dict[str, int]] = {}
        self.sums = {i: op for op in ops if isinstance(op, Add) and op.grid is not None for i in op.inputs}

    def emit(self, op: Operation) -> None:
        """Add `op`, whose inputs are there."""
        op.check_one_row("tflite")
        self.tensors[op] = self.writers[type(op)](self, op)

    def unequal_by_name(self) -> dict[str, dict[str, int]]:
        """Those of `unequal` that are not 0."""
        assert all(op.grid is not None for op in self.unequal)
        label = {op: f"{op.name} [{op.grid.low}, {op.grid.high}]" for op in self.unequal if op.grid is not None}
        return {label[op]: counts for op, counts in self.unequal.items() if any(counts.values())}

    def like(self, op: Operation, shape: Sequence[int] | None = None, source: int | None = None) -> int:
        """A new tensor for the result of `op`, or of `shape`, with type and scale of `source`; None: float."""
        shape = nhwc(op.shape) if shape is None else shape
        if source is None or self.graph.kind(source) == FLOAT:
            return self.graph.tensor(op.name, shape, FLOAT)
        kind, scale, zero = self.graph.kind(source), self.graph.scale(source), self.graph.zero(source)
        return self.graph.tensor(op.name, shape, kind, scale, zero)

    def codes(self, op: Operation, unit: np.float32, shape: Sequence[int] | None = None) -> int:
        """A new tensor of codes of `op`."""
        shape = nhwc(op.shape) if shape is None else shape
        return self.graph.tensor(op.name, shape, INT8, unit, self.zero[op])

    def order(self, op: Operation) -> Order:
        """In which the result of `op` lies."""
        return self.orders.get(op, last(len(op.shape)))

    def stored(self, op: Operation, order: Order | None = None) -> int:
        """The result of `op`, codes or float, in `order`; None: channels last."""
        wanted = last(len(op.shape)) if order is None else order
        return self.transposed(op, self.tensors[op], op.shape, self.order(op), wanted)

    def transposed(self, op: Operation, source: int, shape: Sequence[int], source_order: Order, order: Order) -> int:
        """`source`, of torch's `shape`, from `source_order` to `order`. op: whose name it has."""
        if laid(shape, source_order) == laid(shape, order) and moving(shape, source_order) == moving(shape, order):
            return source
        if (source, order) not in self.ordered:
            self.ordered[source, order] = self._transposed(op, source, shape, source_order, order)
        return self.ordered[source, order]

    def _transposed(self, op: Operation, source: int, shape: Sequence[int], source_order: Order, order: Order) -> int:
        if moving(shape, source_order) == moving(shape, order):
            return self.reshaped(op, source, laid(shape, order))
        if len(self.graph.shape(source)) <= MOST_DIMENSIONS:
            places = [place(source_order, d) for d in order]
            places[1:1] = [1] if len(shape) == 3 else []
            return self.permuted(op, source, places)
        parts = runs_of_order(shape, source_order, order)
        if len(parts) > MOST_DIMENSIONS:
            raise ValueError(
                f"{op.name}: the format tflite moves {MOST_DIMENSIONS} dimensions at most, not {len(parts)}; --to onnx "
                "takes it"
            )
        there = sorted(range(len(parts)), key=lambda i: source_order.index(parts[i][0]))
        sizes = [int(np.prod([shape[d] for d in part])) for part in parts]
        source = self.reshaped(op, source, [sizes[i] for i in there])
        return self.reshaped(
            op, self.permuted(op, source, [there.index(i) for i in range(len(parts))]), laid(shape, order)
        )

    def permuted(self, op: Operation, source: int, places: Sequence[int]) -> int:
        inputs = [source, self.graph.constant(op.name, np.asarray(places, np.int32))]
        shape = self.graph.shape(source)
        return self.graph.node("TRANSPOSE", inputs, self.like(op, [shape[p] for p in places], source))

    def moved(self, op: Operation, source: int, shape: Sequence[int], source_order: Order) -> int:
        """`source`, of torch's `shape`, in `source_order`, in the shape of `op`, whose order it sets."""
        before, self.orders[op] = regrouped(shape, source_order, op.shape)
        source = self.transposed(op, source, shape, source_order, before)
        wanted = laid(op.shape, self.orders[op])
        return source if self.graph.shape(source) == wanted else self.reshaped(op, source, wanted)

    def at_step(self, op: Operation) -> int:
        """The codes of `op` in a tensor whose scale is their step: the same numbers, under the name that they have."""
        assert op.grid is not None
        source, step = self.stored(op), np.float32(op.grid.step)
        if self.graph.scale(source) == step:
            return source
        if op not in self.at_steps:
            self.at_steps[op] = self.renamed(op, source, step, NONE)
        return self.at_steps[op]

    def near_step(self, op: Operation) -> int:
        """As `at_step`; the last bits of its scale may be others, as of a sum."""
        return self.stored(op) if is_near(self.unit(op), 1) else self.at_step(op)

    def unit(self, op: Operation) -> float:
        """How many times its grid's step the scale of the codes of `op` is, which are there."""
        assert op.grid is not None
        return float(self.graph.scale(self.tensors[op]) / op.grid.step)

    def added_to(self, op: Operation) -> float:
        """The `unit` of what the codes of `op` are added to, where that is there: these need the same one."""
        others = {i for i in self.sums[op].inputs if i is not op and i in self.tensors} if op in self.sums else ()
        return next((self.unit(i) for i in others), 1.0)

    def renamed(self, op: Operation, source: int, unit: np.float32, activation: str) -> int:
        """The codes in `source` with another scale: times the code 1, whose own scale is the quotient of the two."""
        one = self.graph.constant(op.name, np.ones(1, np.int8), unit / self.graph.scale(source))
        out = self.codes(op, unit, self.graph.shape(source))
        return self.graph.node("MUL", [source, one], out, fusedActivationFunction=self.activation(activation))

    def spread(self, op: Operation, source: int, times: int) -> int:
        """The codes of `op` in `source` stored `times` as large, so that sums of products with them are, too."""
        assert op.grid is not None
        if (source, times) not in self.spreads:
            zero, unit = -128 - times * op.grid.low, self.graph.scale(source) / np.float32(times)
            out = self.graph.tensor(op.name, self.graph.shape(source), INT8, unit, zero)
            self.spreads[source, times] = self.graph.node("QUANTIZE", [source], out)
        return self.spreads[source, times]

    def value(self, op: Operation, order: Order | None = None) -> int:
        """The float values of an operation's result, in `order`; None: channels last."""
        if op.grid is None:
            return self.stored(op, order)
        if op not in self.floats:
            self.floats[op] = self.graph.node("DEQUANTIZE", [self.at_step(op)], self.like(op))
        last_order = last(len(op.shape))
        return self.transposed(op, self.floats[op], op.shape, last_order, last_order if order is None else order)

    def sources(self, op: Operation) -> list[int]:
        """What `op` reads, channels last: codes where its own result is codes, else values."""
        return [self.value(i) if op.grid is None else self.stored(i) for i in op.inputs]

    def as_it_lies(self, op: Operation, source: Operation) -> tuple[int, Order]:
        """What `op` reads of `source`, and in which order."""
        if op.grid is None and source.grid is not None:
            return self.value(source), last(len(source.shape))
        return self.tensors[source], self.order(source)

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
                source = self.graph.node(kind, inputs, self.like(op, self.graph.shape(source), source))
        return source

    def clip(self, op: Operation) -> Clip:
        """How the codes of `op` are kept in its grid."""
        assert op.grid is not None
        how = clip(op.grid, self.zero[op], op in self.at_their_step)
        if how.activation == NONE and not is_near(unit := self.added_to(op), 1):  # whatever the scale, it is kept
            return replace(how, unit=np.float32(unit * op.grid.step))
        return how

    def unclipped(self, op: Operation, how: Clip, unit: np.float32, shape: Sequence[int] | None = None) -> int:
        """A new tensor of codes of `op` before they are `clipped`, but for the fused activation."""
        shape = nhwc(op.shape) if shape is None else shape
        return self.graph.tensor(op.name, shape, INT8, unit, self.zero[op] + how.shifted)

    def clipped(self, op: Operation, source: int, how: Clip) -> int:
        """Codes in `source`, behind the fused activation, as those of the grid of `op`."""
        assert op.grid is not None
        if how.shifted:
            out = self.codes(op, self.graph.scale(source), self.graph.shape(source))
            return self.graph.node("QUANTIZE", [source], out)
        if how.activation:
            return source
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
        clipped, shape = self.between(op, scaled, least, most), self.graph.shape(scaled)
        self.scaled[op] = self.graph.node("ROUND", [clipped], self.like(op, shape))
        return self.graph.node("QUANTIZE", [self.scaled[op]], self.codes(op, np.float32(1), shape))

    def whole(self, op: Operation) -> int:
        """The codes of `op` as float numbers."""
        assert op.grid is not None
        if op not in self.wholes:
            if op in self.scaled:
                self.wholes[op] = self.between(op, self.scaled[op], op.grid.low or None, op.grid.high)
            else:
                source, one = self.stored(op), np.float32(1)
                source = source if self.graph.scale(source) == one else self.renamed(op, source, one, NONE)
                self.wholes[op] = self.graph.node("DEQUANTIZE", [source], self.like(op))
        return self.wholes[op]

    def padded(self, op: Operation, source: int, ends: Ends, filling: float | None = None) -> int:
        """With `filling`, as it is stored, around the dimensions of the graph; None: with zeros."""
        if not any(map(any, ends)):
            return source
        shape = self.graph.shape(source)
        inputs = [source, self.graph.constant(op.name, np.asarray(ends, np.int32))]
        out = self.like(op, [a + n + b for n, (a, b) in zip(shape, ends, strict=True)], source)
        if filling is None:
            return self.graph.node("PAD", inputs, out)
        return self.graph.node("PADV2", [*inputs, self.number_like(op, source, filling)], out)


TfliteWriters = Mapping[type[Operation], Callable[[Any, Any], int]]
"""{operation: what adds its nodes to an emitter and gives the tensor of the result}"""
