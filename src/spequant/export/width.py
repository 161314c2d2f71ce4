"""A program at another activation width than the one it was trained for: bounds held, steps and codes anew."""

from dataclasses import replace

from spequant.export.grids import grid_of
from spequant.export.program import Grid, Op, Program
from spequant.precision import check_width
from spequant.quantizers.held import Held


def trained_width(program: Program) -> int:
    """The fewest bits that any of its activations was trained at: what `at_width` replaces. ValueError: none are."""
    widths = [op.grid.home.bits for op in program.ops if op.grid is not None and op.grid.home is not None]
    if not widths:
        raise ValueError("the program holds no quantized activation; there is no width to change")
    return min(widths)


def at_width(program: Program, bits: int) -> Program:
    """`program` with its activations of fewest bits at `bits`, 1 to 8; ends and addends of more bits keep theirs.

    The rule is that of `spequant.precision`: a finer grid keeps every value of the trained one.
    """
    check_width(bits, "bits")
    trained = trained_width(program)
    made: dict[Op, Op] = {}
    for op in program.ops:
        grid = op.grid
        if grid is not None and grid.home is not None and grid.home.bits == trained:
            grid = _at(grid, bits)
        made[op] = replace(op, inputs=tuple(made[i] for i in op.inputs), grid=grid)
    return Program(list(made.values()), made[program.output])


def _at(grid: Grid, bits: int) -> Grid:
    home = grid.home
    assert home is not None
    now = grid_of(home, round((home.high - home.low) / grid.step) + 1)
    new = grid_of(home, Held(home.bits, levels=home.levels, signed=home.low < 0).levels_at(bits))
    low = -float("inf") if grid.low == now.low else grid.low * grid.step  # a clamp on the way left a part of it
    high = float("inf") if grid.high == now.high else grid.high * grid.step
    return new.clamped(low, high)
