"""The float network that a program was made of: what low-bit files are timed against in an engine's own float form."""

from dataclasses import replace
from math import inf
from typing import Any

from spequant.deploy.operations import Clamp, FloatLayer, Function, Operation, Quantize, Weighted
from spequant.deploy.program import Program

NO_CLAMP = (-inf, inf)


def float_program(program: Program) -> Program:
    """`program` without quantization: float weights with batch norm in them, clamps where grids have taken them in.

    What was computed once for each of several quantizers is computed once.

    Args:
        program: what `lower` makes; it stays as it is.
    """
    new: dict[Operation, Operation] = {}
    twins: dict[Any, Operation] = {}
    for op in program.ops:
        inputs = tuple(new[i] for i in op.inputs)
        clamp = NO_CLAMP if op.grid is None or op.COMMUTES else op.grid.clamp
        key = type(op), op.name, inputs, clamp
        if key not in twins:
            result = inputs[0] if isinstance(op, Quantize) else _in_float(op, inputs)
            twins[key] = result if clamp == NO_CLAMP else Clamp(op.name, (result,), None, op.shape, *clamp)
        new[op] = twins[key]
    outputs = {name: new[op] for name, op in program.outputs.items()}
    ops = [op for output in outputs.values() for op in _before(output)]
    return Program(list(dict.fromkeys(ops)), new[program.output], outputs)


def _in_float(op: Operation, inputs: tuple[Operation, ...]) -> Operation:
    if isinstance(op, Function):
        parts = dict(zip(op.inputs, inputs, strict=True))
        for part in op.parts:
            parts[part] = replace(part, inputs=tuple(parts[i] for i in part.inputs))
        return parts[op.parts[-1]]
    if not isinstance(op, Weighted):
        return replace(op, inputs=inputs, grid=None)
    weight = op.weight.float() * op.scale.float().view(-1, *[1] * (op.weight.dim() - 1))
    place = op.stride, op.padding, op.dilation, op.groups
    return FloatLayer(op.name, inputs, None, op.shape, weight, op.offset.float(), *place)


def _before(op: Operation) -> list[Operation]:
    """All that `op` is computed of, in order, and itself."""
    ops: list[Operation] = []
    ahead = [op]
    while ahead:
        last = ahead[-1]
        missing = [i for i in last.inputs if i not in ops]
        if missing:
            ahead += missing
            continue
        ahead.pop()
        if last not in ops:
            ops.append(last)
    return ops
