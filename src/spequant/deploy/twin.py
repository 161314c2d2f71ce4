"""The integer twin: a program run in torch, codes as whole numbers, every sum exact; what exports are compared with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spequant.deploy.grids import as_float
from spequant.deploy.operations import Input, Operation
from spequant.deploy.program import Program


class Twin:
    """`program` on integer codes; call it with a float input (batch first) for the float output, several by name.

    Rounding is fp32's in the order in which onnxruntime computes: M = (input step * scale) / output step, one product,
    to the nearest, ties to the even code. So a code that differs elsewhere is a rounding tie or a bug.
    """

    def __init__(self, program: Program):
        self.program = program

    def __call__(self, x: Tensor) -> Any:
        outputs = self.outputs(x)
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """All outputs by name, float."""
        results = self.everything(x)
        return {name: as_float(results[op], op.grid) for name, op in self.program.outputs.items()}

    @torch.no_grad()
    def everything(self, x: Tensor) -> dict[Operation, Tensor]:
        """What every op gives: codes (int32) or float values."""
        results: dict[Operation, Tensor] = {}
        for op in self.program.ops:
            inputs = [x] if isinstance(op, Input) else [results[i] for i in op.inputs]
            results[op] = self.step(op, inputs)
        return results

    @torch.no_grad()
    def step(self, op: Operation, inputs: Sequence[Tensor]) -> Tensor:
        """One op on its inputs: codes (int32) or float values."""
        value = op.compute(inputs)
        return value if op.grid is None else torch.round(value).clamp(op.grid.low, op.grid.high).to(torch.int32)
