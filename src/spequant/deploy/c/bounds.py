"""The largest float value that a program can have where it computes on what is no code."""

import numpy as np

from spequant.deploy.grids import Grid
from spequant.deploy.integers import largest_sums
from spequant.deploy.operations import Add, Clamp, Operation, Weighted
from spequant.deploy.program import Program


def largest_float(program: Program) -> float:
    """In magnitude, of all results without a grid; 1 where there are none."""
    bounds: dict[Operation, float] = {}
    for op in program.ops[1:]:
        bounds[op] = _of_grid(op.grid) if op.grid is not None else _bound(op, bounds)
    return max((bounds[op] for op in program.ops[1:] if op.grid is None), default=0.0) or 1.0


def _of_grid(grid: Grid) -> float:
    return max(-grid.low, grid.high) * grid.step


def _bound(op: Operation, bounds: dict[Operation, float]) -> float:
    inputs = [bounds.get(i, 0.0) for i in op.inputs]
    if isinstance(op, Weighted):
        form = op.integers
        sums = largest_sums(form.weight, min(op.source.low, 0), max(op.source.high, 0)) + form.bias.abs()
        return float((sums.double() * form.scale.double().abs()).max()) * op.source.step
    if isinstance(op, Add):
        return sum(inputs)
    if isinstance(op, Clamp):
        ends = [abs(e) for e in (op.low, op.high) if np.isfinite(e)]
        return max(*inputs, *ends, 0.0)
    return max(inputs, default=0.0)
