"""A program at another activation width than the one it was trained for: bounds held, steps and codes anew."""

from spequant.deploy.grids import Grid, grid_of
from spequant.deploy.operations import Operation
from spequant.deploy.program import Program
from spequant.quantizers.base import check_bits
from spequant.quantizers.held import Held


def at_width(program: Program, bits: int, trained: int | None = None) -> Program:
    """`program` with its activations that were trained at `trained` bits at `bits`, 1 to 8; the others keep theirs.

    The rule is that of `spequant.precision`: a finer grid keeps every value of the trained one.

    Args:
        program: what `lower` makes; it stays as it is.
        bits: 1 to 8.
        trained: None: the fewest bits that there are.

    Raises:
        ValueError: no activation of that width.
    """
    check_bits(bits, "bits")
    homes = {op.grid.home.bits for op in program.ops if op.grid is not None and op.grid.home is not None}
    if not homes or trained not in {None, *homes}:
        raise ValueError(f"trained is {trained!r}; activations here were trained at {sorted(homes)} bits")
    trained = min(homes) if trained is None else trained
    ops: dict[Operation, Operation] = {}
    for op in program.ops:
        grid = op.grid
        if grid is not None and grid.home is not None and grid.home.bits == trained:
            grid = _at(grid, bits)
        ops[op] = op.on(tuple(ops[i] for i in op.inputs), grid)
    outputs = {name: ops[op] for name, op in program.outputs.items()}
    return Program(list(ops.values()), ops[program.output], outputs)


def _at(grid: Grid, bits: int) -> Grid:
    home = grid.home
    assert home is not None
    range_held = Held(home.bits, levels=home.levels, signed=home.low < 0, power_of_two=home.powers is not None)
    return grid_of(home, range_held.levels_at(bits)).clamped(*grid.clamp)
