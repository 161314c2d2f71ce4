"""What takes many positions of an image together: max pooling, the largest and the mean of all positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.deploy.operations.operation import Operation, Read

POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _pool(kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **rest: Any) -> dict[str, Any]:
    def pair(value: Any) -> tuple[int, ...]:
        return (value, value) if isinstance(value, int) else tuple(value)

    if pair(dilation) != (1, 1) or rest.get("ceil_mode"):
        raise ValueError("max pooling with dilation or ceil_mode has no integer form")
    kernel = pair(kernel_size)
    return {"kernel": kernel, "stride": kernel if stride is None else pair(stride), "padding": pair(padding)}


def _over_positions(word: str) -> Read:
    def read(dim: Any = None, keepdim: bool = False, **_: Any) -> dict[str, Any]:
        if dim is None or {d % 4 for d in ((dim,) if isinstance(dim, int) else dim)} != {2, 3}:
            raise ValueError(f"{word} over {dim} has no form here; expected all positions, (2, 3)")
        return {"keep": keepdim}

    return read


def _adaptive(output_size: Any) -> dict[str, Any]:
    if output_size not in (1, (1, 1)):
        raise ValueError(f"adaptive pooling to {output_size} has no form here; expected 1")
    return {"keep": True}


@dataclass(eq=False)
class MaxPool(Operation):
    """The largest number of each window; padding never wins."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()

    WORD = "max_pool"
    IMAGES = COMMUTES = True
    MODULES: ClassVar[dict[type, Read]] = {
        nn.MaxPool2d: lambda m: _pool(m.kernel_size, m.stride, m.padding, m.dilation, ceil_mode=m.ceil_mode)
    }
    FUNCTIONS: ClassVar[dict[Any, Read]] = {F.max_pool2d: _pool}

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        return POOL[len(self.kernel)](x, self.kernel, self.stride, self.padding)


@dataclass(eq=False)
class Amax(Operation):
    """The largest number over all positions; keep: their axes stay, with one position."""

    keep: bool = False

    WORD = "amax"
    IMAGES = COMMUTES = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = {torch.amax: _over_positions("amax")}
    METHODS: ClassVar[dict[str, Read]] = {"amax": _over_positions("amax")}

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        return x.amax(tuple(range(2, x.dim())), keepdim=self.keep)


@dataclass(eq=False)
class Mean(Operation):
    """The mean over all positions, in float."""

    keep: bool = False

    WORD = "mean"
    IMAGES = True
    MODULES: ClassVar[dict[type, Read]] = {nn.AdaptiveAvgPool2d: lambda m: _adaptive(m.output_size)}
    FUNCTIONS: ClassVar[dict[Any, Read]] = {torch.mean: _over_positions("mean"), F.adaptive_avg_pool2d: _adaptive}
    METHODS: ClassVar[dict[str, Read]] = {"mean": _over_positions("mean")}

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        return x.mean(tuple(range(2, x.dim())), keepdim=self.keep)
