"""Functions from code to code in integer ONNX: the float operators that they are made of, or a table to look up.

Between DequantizeLinear and QuantizeLinear engines are several times faster than with Gather (64 x 56 x 56 numbers, one
thread of an EPYC, milliseconds in onnxruntime: Sigmoid 0.09, LeakyRelu 0.08, x * Sigmoid 0.27, Gather 1.57). But their
last bits are their own: so float is written only where no result lies near the middle of two codes. Where some do, a
step of QuantizeLinear that is by a hair another one may keep all of them away from it.
"""

import numpy as np
import torch
from torch import Tensor

from spequant.deploy.operations import Function

FROM_TIE = 1e-4
"""Codes that every result has to be away from the middle of two. The most that a code which was another in an engine
was away from it: 4e-6, of 120,000 (8 functions, onnxruntime 1.32 and OpenVINO 2026.4)."""
HAIRS = [sign * n * 2.0**-16 for n in range(17) for sign in ((1,) if n == 0 else (1, -1))]
"""Shares by which the step may be another one, the smallest first."""


def codes(op: Function) -> Tensor:
    """What is stored for each entry of its table, uint8."""
    assert op.grid is not None
    table = torch.round(op.table).clamp(op.grid.low, op.grid.high)
    return (table + op.grid.zero).to(torch.uint8)


def float_step(op: Function) -> float | None:
    """The step with which QuantizeLinear behind the function's own operators gives the codes of its table; None: there
    is none that is safe."""
    grid = op.grid
    assert grid is not None
    table = op.table.double()
    expected = torch.round(op.table).clamp(grid.low, grid.high).double()
    inside = (table > grid.low - 1) & (table < grid.high + 1)
    for hair in HAIRS:
        moved = table / (1 + hair)
        middle = (moved - moved.floor() - 0.5).abs()
        same = bool((torch.round(moved).clamp(grid.low, grid.high) == expected).all())
        if same and bool((middle[inside] > FROM_TIE * (1 + table[inside].abs() / 64)).all()):
            return float(np.float32(grid.step * (1 + hair)))
    return None
