"""Functions of single numbers: clamps, which a grid takes in; activation functions, which are tables between codes
(`function.py`) and float elsewhere."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

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
        **dict.fromkeys((torch.clamp, torch.clamp_, torch.clip, torch.clip_), _bounds),
    }
    METHODS: ClassVar[dict[str, Read]] = {
        **dict.fromkeys(("relu", "relu_"), lambda: _clamp(0.0)),
        **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), _bounds),
        **dict.fromkeys(("clamp_min", "clamp_min_"), lambda min: _clamp(min)),
        **dict.fromkeys(("clamp_max", "clamp_max_"), lambda max: _clamp(None, max)),
    }

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.values(inputs)[0].clamp(self.low, self.high)

    @classmethod
    def own_grid(cls, step: Step) -> Grid | None:
        grid = step.inputs[0].own_grid
        return None if grid is None else grid.clamped(**step.attributes)

    @classmethod
    def carried(cls, step: Step, grid: Grid, at: Lowering) -> Operation | None:
        return at.codes(step.inputs[0], grid.clamped(**step.attributes))


@dataclass(eq=False)
class Sigmoid(Operation):
    """1 / (1 + exp(-x))"""

    WORD = "sigmoid"
    POINTWISE = True
    MODULES: ClassVar[dict[type, Read]] = {nn.Sigmoid: lambda module: {}}
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((torch.sigmoid, torch.sigmoid_, F.sigmoid), lambda: {})
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("sigmoid", "sigmoid_"), lambda: {})

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.sigmoid(self.values(inputs)[0])


CURVES: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "celu": F.celu,
    "elu": F.elu,
    "exp": torch.exp,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "pow": torch.pow,
    "selu": F.selu,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}
"""What `Curve` computes of a tensor and its numbers, by name."""


def _plain(function: str) -> Read:
    """Of a function without numbers; what it is called with is `inplace`."""
    return lambda *_, **__: {"function": function, "numbers": ()}


def _numbered(function: str, *names: str) -> Read:
    """Of a module with attributes `names`."""
    return lambda m: {"function": function, "numbers": tuple(float(getattr(m, name)) for name in names)}


def _called(function: str, **defaults: float) -> Read:
    """Of a call with arguments as in `defaults`; behind them `inplace`."""

    def read(*args: float, inplace: bool = False, **options: float) -> dict[str, Any]:
        values = defaults | dict(zip(defaults, args, strict=False)) | options
        if set(values) != set(defaults):
            raise TypeError(f"{', '.join(values)} are given; expected {', '.join(defaults)}")
        return {"function": function, "numbers": tuple(float(v) for v in values.values())}

    return read


def _gelu(approximate: str = "none") -> dict[str, Any]:
    return {"function": "gelu" if approximate == "none" else "gelu_tanh", "numbers": ()}


def _power(exponent: Any) -> dict[str, Any]:
    return {"function": "pow", "numbers": (float(exponent),)}


@dataclass(eq=False)
class Curve(Operation):
    """One of `CURVES`, in float. Between codes: a table."""

    function: str = "tanh"
    numbers: tuple[float, ...] = ()

    WORD = "curve"
    POINTWISE = True
    MODULES: ClassVar[dict[type, Read]] = {
        nn.CELU: _numbered("celu", "alpha"),
        nn.ELU: _numbered("elu", "alpha"),
        nn.GELU: lambda m: _gelu(m.approximate),
        nn.Hardsigmoid: _plain("hardsigmoid"),
        nn.Hardswish: _plain("hardswish"),
        nn.LeakyReLU: _numbered("leaky_relu", "negative_slope"),
        nn.LogSigmoid: _plain("logsigmoid"),
        nn.Mish: _plain("mish"),
        nn.SELU: _plain("selu"),
        nn.SiLU: _plain("silu"),
        nn.Softplus: _numbered("softplus", "beta", "threshold"),
        nn.Softsign: _plain("softsign"),
        nn.Tanh: _plain("tanh"),
    }
    FUNCTIONS: ClassVar[dict[Any, Read]] = {
        F.gelu: _gelu,
        F.hardsigmoid: _plain("hardsigmoid"),
        F.hardswish: _plain("hardswish"),
        F.logsigmoid: _plain("logsigmoid"),
        F.mish: _plain("mish"),
        F.selu: _plain("selu"),
        F.silu: _plain("silu"),
        F.softsign: _plain("softsign"),
        **dict.fromkeys((torch.tanh, torch.tanh_, F.tanh), _plain("tanh")),
        **dict.fromkeys((F.celu, F.celu_), _called("celu", alpha=1.0)),
        **dict.fromkeys((F.elu, F.elu_), _called("elu", alpha=1.0)),
        **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _called("leaky_relu", negative_slope=0.01)),
        F.softplus: _called("softplus", beta=1.0, threshold=20.0),
        **dict.fromkeys((torch.abs, torch.abs_), _plain("abs")),
        **dict.fromkeys((torch.exp, torch.exp_), _plain("exp")),
        **dict.fromkeys((torch.pow, operator.pow), _power),
        torch.sqrt: _plain("sqrt"),
        torch.square: lambda: _power(2),
    }
    METHODS: ClassVar[dict[str, Read]] = {
        **{name: _plain(name.rstrip("_")) for name in ("abs", "abs_", "exp", "exp_", "sqrt", "tanh", "tanh_")},
        "pow": _power,
        "square": lambda: _power(2),
    }

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return CURVES[self.function](self.values(inputs)[0], *self.numbers)


@dataclass(eq=False)
class PRelu(Operation):
    """x above zero, x * slopes below: fp32 (channels,)."""

    slopes: Tensor

    WORD = "prelu"
    POINTWISE = True
    MODULES: ClassVar[dict[type, Read]] = {nn.PReLU: lambda m: {"slopes": m.weight.detach().cpu().float()}}
    FUNCTIONS: ClassVar[dict[Any, Read]] = {
        function: lambda weight: {"slopes": weight.detach().cpu().float()} for function in (F.prelu, torch.prelu)
    }

    @property
    def by_channel(self) -> bool:
        return True

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        return F.prelu(self.values(inputs)[0], self.slopes)

    @classmethod
    def settled(cls, step: Step) -> Step:
        """With one slope, `Curve`."""
        slopes = step.attributes["slopes"]
        if slopes.numel() > 1:
            return step
        numbers = {"function": "leaky_relu", "numbers": (float(slopes),)}
        return Step(step.name, Curve, step.inputs, step.shape, numbers)

    @classmethod
    def restored(cls, fields: Mapping[str, Any], tensors: Sequence[Tensor]) -> Self:
        return cls(**fields, slopes=tensors[0].flatten())
