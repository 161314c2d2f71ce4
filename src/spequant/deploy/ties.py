"""Sums, products and means of codes, kept off the middles between two codes: engines round them alike.

The sum of the codes a and b is (a * step of a + b * step of b) / step of the result. Engines compute it in fp32, each
in an order of its own. Where it lies within some last bits of the middle between two codes, they give it different
ones. Of the 65,000 pairs of 8-bit codes nearly always some do, and such a pair may be one of the most frequent. Where
all three steps are whole multiples of one unit, that of the result an odd one, n, a sum is a whole number of 1 / n. So
it is 1 / 2n away from every middle, or more. Of products and means, whole numbers of one unit themselves, the unit is
to be p / q of a step of the result, q odd, as in `scales.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from spequant.deploy.alignment import finer
from spequant.deploy.grids import Grid, act_grid, set_step
from spequant.deploy.lowering import lower_what_can_be
from spequant.deploy.operations import Add, AvgPool, Mean, Mul, Operation, Quantize
from spequant.deploy.program import Program
from spequant.deploy.scales import odd_parts
from spequant.quantizers import Quantizer

UNITS = 1023
"""Units of a step of a sum, odd: half of one is more than fp32 is off at any sum of 8 bits, and the steps of the
addends change by a 2,000th or so."""
LAST_BITS = 2.0**-21
"""How far fp32 may be off, as a share of the largest code of the result."""
MANY = 2**22
"""Values of a mean above which it stays as it is: they are finer than fp32."""
MOST = 1 / 8
"""Share by which a range changes, at most."""


@dataclass(frozen=True)
class Rounding:
    """Codes that are added, multiplied or averaged, and rounded to each of `results`, the finest first.

    inputs: their grids, two but for a mean. kind: Add, Mul, or Mean of any. count: of a mean, how many codes it is of.
    """

    kind: type[Operation]
    inputs: tuple[Grid, ...]
    results: tuple[Grid, ...]
    count: int = 1

    def near_tie(self) -> bool:
        """Whether some codes come so near to the middle between two of a result that last bits of fp32 decide."""
        if self.kind is Mean and self.count * len(range(self.inputs[0].low, self.inputs[0].high)) > MANY:
            return False
        values = self._values()
        return any(_near(values / result.step, result) for result in self.results)

    def _values(self) -> np.ndarray:
        """All that can occur."""
        codes = [np.arange(grid.low, grid.high + 1) for grid in self.inputs]
        if self.kind is Add:
            first, second = (c * grid.step for c, grid in zip(codes, self.inputs, strict=True))
            return first[:, None] + second
        if self.kind is Mul:
            return np.unique(codes[0][:, None] * codes[1]) * self.unit
        (grid,) = self.inputs
        return np.arange(grid.low * self.count, grid.high * self.count + 1) * self.unit

    @property
    def unit(self) -> float:
        """Of which products and means are whole numbers."""
        return prod(grid.step for grid in self.inputs) / self.count

    def at(self, steps: Mapping[float, float]) -> "Rounding":
        """With other steps: {as it was: as it is}."""
        inputs, results = (
            tuple(replace(grid, step=steps.get(grid.step, grid.step)) for grid in grids)
            for grids in (self.inputs, self.results)
        )
        return replace(self, inputs=inputs, results=results)

    @property
    def steps(self) -> set[float]:
        return {grid.step for grid in (*self.inputs, *self.results)}


def _near(values: np.ndarray, result: Grid) -> bool:
    off = np.abs(values - np.floor(values) - 0.5)[(values > result.low) & (values < result.high)]
    return bool((off < LAST_BITS * max(result.high, -result.low)).any())


def keep_off_ties(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Change the ranges of the quantizers around each sum, product and mean of codes, in place, until none comes near
    the middle between two codes of its result.

    A range that one of them has settled stays as it is at the next. What only such ranges are around stays near ties,
    and so does what quantizers without a range of their own read.

    Returns:
        {name of a quantizer: new range / old range} of those that were changed.

    Raises:
        RuntimeError, ValueError: as `lower_what_can_be`.
    """
    program, _ = lower_what_can_be(model, example)
    ranges = _Ranges(model, program)
    for rounding in _roundings(program):
        _settle(rounding, ranges)
    return ranges.factors()


def _roundings(program: Program) -> Iterator[Rounding]:
    """Of one operation all grids that it is read on in one."""
    grids: dict[tuple[str, tuple[float, ...]], tuple[Operation, list[Grid]]] = {}
    for op in program.ops:
        if op.grid is not None and isinstance(op, Add | Mul | Mean | AvgPool | Quantize) and _of_codes(op):
            key = op.name, tuple(_grid(i).step for i in op.inputs)
            grids.setdefault(key, (op, []))[1].append(op.grid)
    for op, results in grids.values():
        kind: type[Operation] = type(op) if isinstance(op, Add | Mul) else Mean
        ordered = tuple(sorted(results, key=lambda grid: grid.step))
        yield Rounding(kind, tuple(map(_grid, op.inputs)), ordered, _count(op))


def _of_codes(op: Operation) -> bool:
    uneven = isinstance(op, AvgPool) and not op.counts_padding and any(op.padding)
    return not uneven and all(i.grid is not None for i in op.inputs)


def _count(op: Operation) -> int:
    if isinstance(op, AvgPool):
        return prod(op.kernel)
    if isinstance(op, Mean):
        shape = op.inputs[0].shape
        return prod(shape[d] for d in op.dims or range(2, len(shape)))
    return 1


def _grid(op: Operation) -> Grid:
    assert op.grid is not None
    return op.grid


class _Ranges:
    """Of the activation quantizers of a network, by the step that they had: equal ones change together.

    steps: what they are now. followers: {fine step: coarser ones, to stay whole multiples of it}. settled: those that
    stay.
    """

    def __init__(self, model: nn.Module, program: Program):
        self.quantizers: dict[float, list[Quantizer]] = {}
        for q in model.modules():
            if isinstance(q, Quantizer) and not q.of_weight and (step := _step(q)) is not None:
                self.quantizers.setdefault(step, []).append(q)
        self.steps = {step: step for step in self.quantizers}
        self.settled = {step for step, group in self.quantizers.items() if any(map(_keeps_its_range, group))}
        self.followers: dict[float, set[float]] = {}
        for op, fine in finer(program).items():
            self.followers.setdefault(_grid(fine).step, set()).add(_grid(op).step)

    def free(self, grid: Grid) -> bool:
        together = {grid.step} | self.followers.get(grid.step, set())
        return together <= self.quantizers.keys() and not together & self.settled

    def now(self, grid: Grid) -> float:
        """The step of what had the step of `grid`."""
        return self.steps.get(grid.step, grid.step)

    def change(self, step: float, to: float) -> None:
        """Of the quantizers that had `step`."""
        group = self.quantizers[step]
        if all([set_step(q, to) for q in group]):
            self.steps[step] = to
        else:  # all or none
            for q in group:
                set_step(q, self.steps[step])

    def factors(self) -> dict[str, float]:
        changed = {old: new for old, new in self.steps.items() if new != old}
        return {q.name: new / old for old, new in changed.items() for q in self.quantizers[old]}


def _keeps_its_range(quantizer: Quantizer) -> bool:
    return quantizer.power_of_two or not quantizer.stored


def _step(quantizer: Quantizer) -> float | None:
    try:
        return act_grid(quantizer).step
    except ValueError:  # nothing is made of its codes
        return None


def _settle(rounding: Rounding, ranges: _Ranges) -> None:
    if rounding.at(ranges.steps).near_tie():
        changed = _multiples(rounding, ranges) if rounding.kind is Add else _odd_parts(rounding, ranges)
        for fine, step in dict(changed).items():
            changed |= {coarse: step * round(coarse / fine) for coarse in ranges.followers.get(fine, ())}
        small = all(abs(new / old - 1) <= MOST for old, new in changed.items())
        if small and not rounding.at(ranges.steps | changed).near_tie():
            for step, new in changed.items():
                ranges.change(step, new)
    for step in rounding.steps:
        ranges.settled |= {step} | ranges.followers.get(step, set())


def _multiples(rounding: Rounding, ranges: _Ranges) -> dict[float, float]:
    """{step as it was: near it, a whole multiple of a unit, of results an odd one} of the free ones of a sum."""
    addends, results = rounding.inputs, rounding.results
    finest = ranges.now(results[0])
    unit = finest / UNITS
    for grid in addends:
        if ranges.free(results[0]) and not ranges.free(grid):
            unit = ranges.now(grid) / max(1, round(ranges.now(grid) / unit))
    counts = {grid.step: max(1, round(ranges.now(grid) / unit)) for grid in addends}
    counts |= {grid.step: _odd(ranges.now(grid) / finest * UNITS) for grid in results}
    free = {grid.step for grid in (*addends, *results) if ranges.free(grid)}
    return {step: unit * count for step, count in counts.items() if step in free}


def _odd(number: float) -> int:
    """The nearest odd whole number."""
    return 2 * round((number - 1) / 2) + 1


def _odd_parts(rounding: Rounding, ranges: _Ranges) -> dict[float, float]:
    """{step as it was: one near it} of the results of a product or mean, or of an input where the finest result is not
    free, so that its unit is an odd part of theirs."""
    unit, finest = rounding.at(ranges.steps).unit, rounding.results[0]
    if ranges.free(finest):
        free = [grid for grid in rounding.results if ranges.free(grid)]
        return {grid.step: unit / _odd_part(unit / ranges.now(grid)) for grid in free}
    factor = _odd_part(unit / ranges.now(finest)) * ranges.now(finest) / unit
    one = next((grid for grid in rounding.inputs if ranges.free(grid)), None)
    return {} if one is None else {one.step: ranges.now(one) * factor}


def _odd_part(ratio: float) -> float:
    return float(odd_parts(torch.tensor([ratio], dtype=torch.float64)))
