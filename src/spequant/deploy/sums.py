"""Sums of two quantized tensors, kept off the middles between two codes: engines round them alike.

The sum of the codes a and b is (a * step of a + b * step of b) / step of the result. Engines compute it in fp32, each
in an order of its own. Where it lies within some last bits of the middle between two codes, they give it different
ones. Of the 65,000 pairs of 8-bit codes nearly always some do, and such a pair may be one of the most frequent. Where
all three steps are whole multiples of one unit, that of the result an odd one, n, a sum is a whole number of 1 / n. So
it is 1 / 2n away from every middle, or more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from spequant.deploy.alignment import finer
from spequant.deploy.grids import Grid, act_grid, set_step
from spequant.deploy.lowering import lower_what_can_be
from spequant.deploy.operations import Add, Operation
from spequant.deploy.program import Program
from spequant.quantizers import Quantizer

UNITS = 1023
"""Units of a step of the result, odd: half of one is more than fp32 is off at any sum of 8 bits, and the steps of the
addends change by a 2,000th or so."""
LAST_BITS = 2.0**-21
"""How far fp32 may be off, as a share of the largest code of the result."""
MOST = 1 / 8
"""Share by which a range changes, at most."""


def keep_sums_off_ties(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Change the ranges of the quantizers around each sum, in place, until no two codes add up to nearly a middle.

    A range that one sum has settled stays as it is at the next. A sum stays as it is where both its addends do, being
    sums themselves or read by quantizers without a range of their own.

    Returns:
        {name of a quantizer: new range / old range} of those that were changed.

    Raises:
        RuntimeError, ValueError: as `lower_what_can_be`.
    """
    program, _ = lower_what_can_be(model, example)
    sums: dict[tuple[str, float, float], list[Operation]] = {}  # of each sum all grids that it is read on
    for op in program.ops:
        if isinstance(op, Add) and op.of_codes and op.grid is not None:
            a, b = map(_grid, op.inputs)
            sums.setdefault((op.name, a.step, b.step), []).append(op)
    ranges = _Ranges(model, program)
    for ops in sums.values():
        _settle(tuple(map(_grid, ops[0].inputs)), sorted(map(_grid, ops), key=lambda grid: grid.step), ranges)
    return ranges.factors()


def near_tie(a: Grid, b: Grid, result: Grid) -> bool:
    """Whether two codes of `a` and `b` add up to so nearly a middle of `result` that last bits of fp32 decide."""
    first, second = (np.arange(g.low, g.high + 1) * (g.step / result.step) for g in (a, b))
    sums = first[:, None] + second
    off = np.abs(sums - np.floor(sums) - 0.5)[(sums > result.low) & (sums < result.high)]
    return bool((off < LAST_BITS * max(result.high, -result.low)).any())


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
        self.settled = {step for step, group in self.quantizers.items() if any(q.power_of_two for q in group)}
        self.followers: dict[float, set[float]] = {}
        for op, fine in finer(program).items():
            self.followers.setdefault(_grid(fine).step, set()).add(_grid(op).step)

    def free(self, grid: Grid) -> bool:
        together = {grid.step} | self.followers.get(grid.step, set())
        return together <= self.quantizers.keys() and not together & self.settled

    def now(self, grid: Grid) -> Grid:
        return replace(grid, step=self.steps.get(grid.step, grid.step))

    def change(self, step: float, to: float) -> None:
        """Of the quantizers that had `step`."""
        if all([set_step(q, to) for q in self.quantizers[step]]):
            self.steps[step] = to

    def factors(self) -> dict[str, float]:
        changed = {old: new for old, new in self.steps.items() if new != old}
        return {q.name: new / old for old, new in changed.items() for q in self.quantizers[old]}


def _step(quantizer: Quantizer) -> float | None:
    try:
        return act_grid(quantizer).step
    except ValueError:  # no sum is made of its codes
        return None


def _settle(addends: Sequence[Grid], results: Sequence[Grid], ranges: _Ranges) -> None:
    """One sum, on all grids that it is read on, the finest first."""
    if _near_ties(addends, results, ranges.steps):
        steps = ranges.steps | _multiples(addends, results, ranges)
        small = all(abs(new / old - 1) <= MOST for old, new in steps.items())
        if small and not _near_ties(addends, results, steps):
            for step, new in steps.items():
                if new != ranges.steps[step]:
                    ranges.change(step, new)
    for step in {grid.step for grid in (*addends, *results)}:
        ranges.settled |= {step} | ranges.followers.get(step, set())


def _near_ties(addends: Sequence[Grid], results: Sequence[Grid], steps: Mapping[float, float]) -> bool:
    a, b, *on = (replace(grid, step=steps.get(grid.step, grid.step)) for grid in (*addends, *results))
    return any(near_tie(a, b, result) for result in on)


def _multiples(addends: Sequence[Grid], results: Sequence[Grid], ranges: _Ranges) -> dict[float, float]:
    """{step as it was: near it, a whole multiple of a unit, of results an odd one} of the free ones."""
    finest = ranges.now(results[0]).step
    unit = finest / UNITS
    for grid in addends:
        if ranges.free(results[0]) and not ranges.free(grid):
            step = ranges.now(grid).step
            unit = step / max(1, round(step / unit))
    counts = {grid.step: max(1, round(ranges.now(grid).step / unit)) for grid in addends}
    counts |= {grid.step: _odd(ranges.now(grid).step / finest * UNITS) for grid in results}
    free = {grid.step for grid in (*addends, *results) if ranges.free(grid)}
    steps = {step: unit * count for step, count in counts.items() if step in free}
    for fine, step in dict(steps).items():
        steps |= {coarse: step * round(coarse / fine) for coarse in ranges.followers.get(fine, ())}
    return steps


def _odd(number: float) -> int:
    """The nearest odd whole number."""
    return 2 * round((number - 1) / 2) + 1
