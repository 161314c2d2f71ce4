"""Functions of single numbers: clamps, which a grid takes in; the sigmoid and ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.deploy.grids import Grid
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step


def _clamp(low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"low": -math.inf if low is None else float(low), "high": math.inf if high is None else float(high)}


def _bounds(min: float | None = None, max: float | None = None) -> dict[str, Any]:
    return _clamp(min, max)


@dataclass(eq=False)
class Clamp(Operation):
    """clamp(x, low, high), ReLU above all. On codes it is part of the grid."""

    low: float = -math.inf
    high: float = math.inf

    WORD = "clamp"
    POINTWISE = True
    MODULES: ClassVar[dict[type, Read]] = {
        nn.ReLU: lambda m: _clamp(0.0),
        nn.Hardtanh: lambda m: _clamp(m.min_val, m.max_val),  # ReLU6, too
    }
    FUNCTIONS: ClassVar[dict[Any, Read]] = {
        **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), lambda *_, **__: _clamp(0.0)),  # _: `inplace`
        F.relu6: lambda *_, **__: _clamp(0.0, 6.0),
        **dict.fromkeys(
            (F.hardtanh, F.hardtanh_), lambda min_val=-1.0, max_val=1.0, *_, **__: _clamp(min_val, max_val)
        ),
        **dict.fromkeys((torch.clamp, torch.clamp_), _bounds),
    }
    METHODS: ClassVar[dict[str, Read]] = {
        **dict.fromkeys(("relu", "relu_"), lambda: _clamp(0.0)),
        **dict.fromkeys(("clamp", "clamp_"), _bounds),
    }

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.values(inputs)[0].clamp(self.low, self.high)

    @classmethod
    def own_grid(cls, step: Step) -> Grid | None:
        own = step.inputs[0].own_grid
        return None if own is None else own.clamped(**step.attributes)

    @classmethod
    def carried(cls, step: Step, grid: Grid, at: Lowering) -> Operation | None:
        return at.codes(step.inputs[0], grid.clamped(**step.attributes))


@dataclass(eq=False)
class Sigmoid(Operation):
    """1 / (1 + exp(-x))"""

    WORD = "sigmoid"
    POINTWISE = True
    MODULES: ClassVar[dict[type, Read]] = {nn.Sigmoid: lambda module: {}}
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((torch.sigmoid, torch.sigmoid_), lambda: {})
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("sigmoid", "sigmoid_"), lambda: {})

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.sigmoid(self.values(inputs)[0])
