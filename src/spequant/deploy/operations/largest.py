"""`max` in its other forms: of two tensors, and along a dimension, where it gives places, too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from spequant.deploy.operations.moving import Stack
from spequant.deploy.operations.operation import Operation, Read, Step
from spequant.deploy.operations.positions import Amax


def _of(x: Any, other: Any = None, keepdim: bool = False, *, dim: int | None = None) -> dict[str, Any]:
    if isinstance(other, fx.Node):
        return {}
    over = other if dim is None else dim
    if not isinstance(over, int):
        raise ValueError(f"the largest of all and {over!r} has no integer form; expected a dimension, or two tensors")
    return {"over": over, "keep": keepdim}


@dataclass(eq=False)
class Largest(Operation):
    """max(a, b), or max(x, dim), of which only the values have a form. In no program: `Amax` is."""

    WORD = "max"
    OPERANDS = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((torch.max, torch.maximum), _of)
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("max", "maximum"), _of)

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        raise AssertionError(f"{self.name} is in no program")

    @classmethod
    def settled(cls, step: Step) -> Step:
        if len(step.inputs) != 2 or step.inputs[0].shape != step.inputs[1].shape:
            shapes = " and ".join(str(i.shape[1:]) for i in step.inputs)
            raise ValueError(f"the larger one of {shapes} has no integer form; expected two tensors of one shape")
        batch, *sizes = step.shape
        both = Stack.settled(Step(step.name, Stack, step.inputs, (batch, 2, *sizes), {"dim": 1}))
        return Amax.settled(Step(step.name, Amax, (both,), step.shape, {"over": 1, "keep": False}))

    @staticmethod
    def part(largest: Step, index: Any, step: Step) -> Step:
        """The values, which `step` takes. ValueError: the places."""
        if tuple(index) != (0,):
            raise ValueError("places of the largest numbers have no integer form; expected max(x, dim)[0], or amax")
        return Amax.settled(Step(step.name, Amax, largest.inputs, step.shape, dict(largest.attributes)))
