"""A module with quantizers around it: what all wrappers share, and those of marked additions and products."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spequant.quantizers.base import Quantizer

HOOKS_BEFORE = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
HOOKS = (*HOOKS_BEFORE, "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
"""Where torch keeps the hooks that run before a module's forward, and all those around it."""


def move_hooks(source: nn.Module, target: nn.Module, places: Sequence[str]) -> None:
    """Move the hooks in `places`, some of `HOOKS`, from one module to another."""
    for place in places:
        getattr(target, place).update(getattr(source, place))
        getattr(source, place).clear()


class Wrapper(nn.Module):
    """A module of a network with quantizers around it.

    The inner module is the attribute named `INNER`, the activation quantizers are those named in `ACTS`. All other
    attributes of the inner module (bias, out_features, stride ...) are read and written through the wrapper.
    """

    INNER: str
    ACTS: tuple[str, ...]

    def _holder(self, name: str) -> nn.Module | None:
        """Return the inner module if `name` is an attribute of it and not of the wrapper, else None."""
        inner = vars(self).get("_modules", {}).get(self.INNER)
        reserved = name.startswith("_") or name.endswith("_quantizer") or name == self.INNER
        if reserved or inner is None or name in vars(self) or hasattr(type(self), name) or not hasattr(inner, name):
            return None
        return inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self._holder(name)
            if inner is None:
                raise
            return getattr(inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self._holder(name)
        if inner is None:
            super().__setattr__(name, value)
        else:
            setattr(inner, name, value)

    def __delattr__(self, name: str) -> None:
        inner = self._holder(name)
        if inner is None:
            super().__delattr__(name)
        else:
            delattr(inner, name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        inner = self._holder(name)
        if inner is None:
            super().register_parameter(name, param)
        else:
            inner.register_parameter(name, param)


def inner_module(wrapper: Wrapper) -> nn.Module:
    """Return the float module inside `wrapper`. A function, since attributes of a wrapper are those of that module."""
    return wrapper._modules[wrapper.INNER]  # type: ignore[return-value]


class QuantizedPair(Wrapper):
    """Base of marked modules with two inputs, which quantize both.

    Args:
        inner: the float module, called with (first, second).
        first_quantizer, second_quantizer: quantizers of the inputs; their names are those in `ACTS`.
    """

    def __init__(self, inner: nn.Module, first_quantizer: Quantizer, second_quantizer: Quantizer):
        super().__init__()
        for name, module in zip((self.INNER, *self.ACTS), (inner, first_quantizer, second_quantizer), strict=True):
            self.add_module(name, module)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        quantize_first, quantize_second = getattr(self, self.ACTS[0]), getattr(self, self.ACTS[1])
        return getattr(self, self.INNER)(quantize_first(first), quantize_second(second))


class QuantizedAdd(QuantizedPair):
    """A marked residual addition, called with (branch, shortcut), that quantizes both addends."""

    INNER = "add"
    ACTS = ("branch_quantizer", "shortcut_quantizer")


class QuantizedProduct(QuantizedPair):
    """A marked product of two activations (q k and p v of attention) that quantizes both factors, (left, right)."""

    INNER = "product"
    ACTS = ("left_quantizer", "right_quantizer")
