"""What one call of the kernel of layers computes together: results of equal sums on several grids, additions behind."""

from dataclasses import dataclass

import torch

from spequant.deploy.operations import Add, Operation, Weighted
from spequant.deploy.program import Program


@dataclass(eq=False)
class FusedGroup:
    """Layers of equal sums. results: each with the addition that it ends in, or None: it is stored itself."""

    results: list[tuple[Weighted, Add | None]]


def fusions(program: Program) -> dict[Operation, FusedGroup]:
    """{layer, or addition: what it is computed with}."""
    readers: dict[Operation, list[Operation]] = {op: [] for op in program.ops}
    before: dict[Operation, set[Operation]] = {}
    for op in program.ops:
        before[op] = {op}.union(*(before[i] for i in op.inputs))
        for source in op.inputs:
            readers[source].append(op)
    outputs, taken = set(program.outputs.values()), set[Operation]()
    groups: list[FusedGroup] = []
    by_operation: dict[Operation, FusedGroup] = {}
    for op in program.weighted:
        group = next((g for g in groups if _same(g.results[0][0], op)), None)
        if group is None:
            groups.append(group := FusedGroup([]))
        additions: list[Add | None] = [None]
        if op not in outputs and op.grid is not None and all(_ends_in(r, op, taken) for r in readers[op]):
            additions = [r for r in readers[op] if isinstance(r, Add)] or [None]
        group.results += [(op, added) for added in additions]
        taken |= {a for a in additions if a is not None}
    for group in groups:
        layers = {op for op, _ in group.results}
        others = [i for _, a in group.results if a is not None for i in a.inputs if i not in layers]
        if any(before[i] & {*layers, *(a for _, a in group.results if a)} for i in others):
            group.results = list(dict.fromkeys((op, None) for op, _ in group.results))
        by_operation |= {key: group for op, added in group.results for key in (op, added) if key is not None}
    return by_operation


def _same(a: Weighted, b: Weighted) -> bool:
    """Whether two layers have the same sums."""
    if a.inputs != b.inputs or a.name != b.name or a.weight.shape != b.weight.shape or a.shape != b.shape:
        return False
    form = "stride", "padding", "dilation", "groups"
    if any(getattr(a, name) != getattr(b, name) for name in form):
        return False
    tensors = "weight", "bias", "scale"
    return all(torch.equal(getattr(a.integers, name), getattr(b.integers, name)) for name in tensors)


def _ends_in(reader: Operation, op: Weighted, taken: set[Operation]) -> bool:
    """Whether `reader` is an addition of `op` and another tensor of its shape, which no other layer ends in."""
    return (
        isinstance(reader, Add)
        and reader.of_codes
        and reader not in taken
        and reader.inputs[0] is not reader.inputs[1]
        and all(i.shape == op.shape == reader.shape for i in reader.inputs)
    )
