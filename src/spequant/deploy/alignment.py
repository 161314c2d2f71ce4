"""Tensors that two quantizers read, on few codes and on many, as the sums of a residual network: one rounding for both.

Where one step of the coarse grid is an odd number of steps of the fine one, the middles between its codes are middles
between fine codes, too: rounding to the fine grid first changes no code of the coarse one. Then its codes are a
function of the fine codes, and what they come from need not be computed twice.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from spequant.deploy.grids import Grid
from spequant.deploy.operations import Function, Operation, Quantize
from spequant.deploy.program import Program

SAME = 2.0**-20
"""Share by which a step may be off an odd number of others: some last bits of fp32."""


def steps_in(coarse: Grid, fine: Grid) -> int | None:
    """How many steps of `fine` are one of `coarse`, an odd number; None: its codes are no function of fine codes."""
    ratio = coarse.step / fine.step
    count = round(ratio)
    if count % 2 == 0 or abs(ratio / count - 1) > SAME:
        return None
    reached = round(fine.low / count) <= coarse.low and coarse.high <= round(fine.high / count)
    return count if reached else None


def finer(program: Program) -> dict[Operation, Operation]:
    """{operation: the same operation on a finer grid, from whose codes its own follow}"""
    alike: dict[Hashable, list[Operation]] = {}
    keys: dict[Operation, Hashable] = {}
    for op in program.ops:
        inputs = tuple(keys[i] if op.COMMUTES else i for i in op.inputs)
        keys[op] = type(op), op.name, inputs or op, str(op.attributes())
        if op.grid is not None:
            alike.setdefault(keys[op], []).append(op)
    pairs: dict[Operation, Operation] = {}
    for ops in alike.values():
        for op in ops:
            fits = (b for b in ops if _finer_than(op, b) and _equal(op, b))
            if (fine := min(fits, key=_step, default=None)) is not None:
                pairs[op] = fine
    return pairs


def _step(op: Operation) -> float:
    assert op.grid is not None
    return op.grid.step


def _finer_than(op: Operation, other: Operation) -> bool:
    """Whether the codes of `op` follow from those of `other`, and not both from each other's."""
    assert op.grid is not None and other.grid is not None
    return op is not other and steps_in(op.grid, other.grid) is not None and steps_in(other.grid, op.grid) is None


def _equal(a: Operation, b: Operation) -> bool:
    """Whether two of one key have equal constants, and their sources too; False of what pixels put on ties."""
    if isinstance(a, Function | Quantize):
        return False
    tensors = [{name: v for name, v in vars(op).items() if isinstance(v, Tensor)} for op in (a, b)]
    same = all(torch.equal(v, tensors[1][name]) for name, v in tensors[0].items())
    return same and (not a.COMMUTES or all(map(_equal, a.inputs, b.inputs)))


def computed(program: Program, pairs: Mapping[Operation, Operation], taps: Sequence[Operation] = ()) -> list[Operation]:
    """The operations of `program` that a graph has, each behind what it is made of: a member of `pairs` of the codes
    of its finer one. Those of which then nothing is made, outputs and `taps` aside, are left out."""
    sources = {op: (pairs[op],) if op in pairs else op.inputs for op in program.ops}
    used = {*program.outputs.values(), *taps}
    for op in reversed(program.ops):
        if op in used or op not in pairs:
            used |= {op, *sources[op]}
    order: dict[Operation, None] = {}

    def put(op: Operation) -> None:
        if op not in order:
            for source in sources[op]:
                put(source)
            order[op] = None

    for op in program.ops:
        if op in used:
            put(op)
    return list(order)
