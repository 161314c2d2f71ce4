"""Sums of two tensors: of codes, each at its own step, or of float values."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spequant.deploy.grids import Grid, act_grid
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step
from spequant.layers import QuantizedAdd
from spequant.quantizers import Quantizer


def plain_addition(module: Any) -> dict[str, Any]:
    """ValueError: a marked addition that is another function than branch + shortcut."""
    a, b = torch.randn(2, 1, 2, 3, 3)
    if not torch.equal(module.add(a.clone(), b.clone()), a + b):  # it may write to them
        raise ValueError("its marked addition is not branch + shortcut; it has no integer form")
    return {}


def _nothing(other: Any) -> dict[str, Any]:
    return {}


@dataclass(eq=False)
class Add(Operation):
    """a + b."""

    WORD = "add"
    MODULES: ClassVar[dict[type, Read]] = {QuantizedAdd: plain_addition}
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((operator.add, operator.iadd, torch.add), _nothing)
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("add", "add_"), _nothing)

    @property
    def of_codes(self) -> bool:
        return all(i.grid is not None for i in self.inputs)

    @property
    def in_float(self) -> bool:
        return not self.of_codes

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        a, b = inputs
        steps = [torch.tensor(i.grid.step if i.grid else 1.0, dtype=torch.float32) for i in self.inputs]
        if self.grid is not None:
            steps = [step / self.grid.step for step in steps]
        return a.float() * steps[0] + b.float() * steps[1]

    @classmethod
    def reads(cls, step: Step) -> list[tuple[Step, Quantizer]]:
        module = step.module
        if not isinstance(module, QuantizedAdd):
            return []
        return list(zip(step.inputs, (module.branch_quantizer, module.shortcut_quantizer), strict=True))

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
        if step.module is not None:
            inputs = tuple(at.codes(i, act_grid(q)) for i, q in cls.reads(step))
        elif all(i.own_grid is not None for i in step.inputs):
            inputs = tuple(at.value(i) for i in step.inputs)
        else:
            return None
        return at.add(cls(step.name, inputs, grid, step.shape))
