"""Numbers taken in any order along a dimension: channels by a list, flips, rolls, copies one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spequant.deploy.operations.operation import Operation, Read, Step
from spequant.deploy.operations.slicing import taken


def _by(function: Callable[..., Tensor]) -> Read:
    return lambda *args, **options: {"by": lambda x: function(x, *args, **options)}


@dataclass(eq=False)
class Gathered(Operation):
    """Numbers in another order, some left out or there several times. In no program: slices, one after the other."""

    WORD = "indexing"
    FUNCTIONS: ClassVar[dict[Any, Read]] = {
        f: _by(f) for f in (torch.flip, torch.roll, torch.index_select, torch.tile, torch.repeat_interleave)
    }
    METHODS: ClassVar[dict[str, Read]] = {
        name: _by(getattr(Tensor, name)) for name in ("flip", "index_select", "repeat", "repeat_interleave", "roll")
    }

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        raise AssertionError(f"{self.name} is in no program")

    @classmethod
    def settled(cls, step: Step) -> Step:
        return taken(step, step.attributes["by"])
