"""Where codes begin: the network's input, and rounding to a grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spequant.deploy.grids import Grid, act_grid, as_float
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step
from spequant.quantizers import Quantizer


@dataclass(eq=False)
class Input(Operation):
    """What the network is given, float."""

    WORD = "input"

    @property
    def in_float(self) -> bool:
        return False

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0].float()


@dataclass(eq=False)
class Unread(Operation):
    """What has no form, while the rest of a network is looked at. In no program that is run."""

    WORD = "nothing"

    @property
    def in_float(self) -> bool:
        return False

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        raise AssertionError(f"{self.name} has no form")


@dataclass(eq=False)
class Quantize(Operation):
    """Float to codes: clip(round(x * rate), low, high), ties to the even code. In a network: a quantizer of an output,
    which is written only where its input has no such grid already."""

    WORD = "requantize"
    MODULES: ClassVar[dict[type, Read]] = {Quantizer: lambda module: {}}

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        assert self.grid is not None
        return as_float(inputs[0], self.inputs[0].grid) * self.grid.rate

    @classmethod
    def own_grid(cls, step: Step) -> Grid | None:
        assert isinstance(step.module, Quantizer)
        return act_grid(step.module)

    @classmethod
    def carried(cls, step: Step, grid: Grid, at: Lowering) -> Operation | None:
        return at.codes(step.inputs[0], grid) if step.own_grid is not None and grid.lies_in(step.own_grid) else None
