"""A module with quantizers around it: what all wrappers share, and those of marked additions and products."""

from typing import Any

from torch import Tensor, nn

from spequant.quantizers.base import Quantizer


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


class QuantizedAdd(Wrapper):
    """A marked residual addition that quantizes both addends.

    Args:
        add: the float addition, called with (branch, shortcut).
        branch_quantizer, shortcut_quantizer: quantizers of the addends.
    """

    INNER = "add"
    ACTS = ("branch_quantizer", "shortcut_quantizer")

    def __init__(self, add: nn.Module, branch_quantizer: Quantizer, shortcut_quantizer: Quantizer):
        super().__init__()
        self.add = add
        self.branch_quantizer = branch_quantizer
        self.shortcut_quantizer = shortcut_quantizer

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return self.add(self.branch_quantizer(branch), self.shortcut_quantizer(shortcut))


class QuantizedProduct(Wrapper):
    """A marked product of two activations (q k and p v of attention) that quantizes both.

    Args:
        product: the float product, called with (left, right).
        left_quantizer, right_quantizer: quantizers of the factors.
    """

    INNER = "product"
    ACTS = ("left_quantizer", "right_quantizer")

    def __init__(self, product: nn.Module, left_quantizer: Quantizer, right_quantizer: Quantizer):
        super().__init__()
        self.product = product
        self.left_quantizer = left_quantizer
        self.right_quantizer = right_quantizer

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.product(self.left_quantizer(left), self.right_quantizer(right))
