"""The weight of a quantized layer as modules around the layer see it: readable in its form, not in its values."""

from typing import Any, NoReturn, Self

from torch import Tensor
from torch.utils._pytree import tree_leaves


class SealedWeight:
    """Stand-in for the weight of a quantized layer, which refuses every use that would bypass the quantizers.

    Type, device, shape and gradient can be read, as networks do to convert their input. The weight can be frozen, and
    its `data` and `grad` can be replaced.

    Args:
        weight: the float weight.
        layer_name: name of the layer in the model, for messages.

    Raises:
        AttributeError: any other use, by an attribute, an operator or a function of torch.
    """

    READABLE = ("dtype", "device", "layout", "shape", "ndim", "requires_grad", "grad", "size", "dim", "numel", "stride")
    READABLE += ("is_floating_point", "is_contiguous", "element_size", "nbytes", "is_leaf", "is_cuda", "is_meta")
    WRITABLE = ("data", "grad", "requires_grad")
    _layer_name = "this layer"  # read while a copy is made, before the copy has its own attributes

    def __init__(self, weight: Tensor, layer_name: str):
        vars(self).update(_weight=weight, _layer_name=layer_name)

    def __getattr__(self, name: str) -> Any:
        if name in self.READABLE:
            return getattr(self._weight, name)
        raise _bypass(self._layer_name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.WRITABLE:
            raise _bypass(self._layer_name)
        if name == "data" and value.shape != self._weight.shape:
            refuse_weight(self._layer_name, self._weight, value)
        setattr(self._weight, name, value)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        self._weight.requires_grad_(requires_grad)
        return self

    def __len__(self) -> int:
        return len(self._weight)

    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        raise _bypass(next((x._layer_name for x in leaves if isinstance(x, SealedWeight)), "this layer"))


def _refuse_operator(self: SealedWeight, *_: object) -> Any:
    raise _bypass(self._layer_name)


BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
OTHER = ("neg", "pos", "abs", "invert", "getitem", "setitem", "iter", "contains", "array", "float", "int", "index")
OTHER += ("bool", "eq", "ne", "lt", "le", "gt", "ge")
for _name in (*BINARY, *(f"r{name}" for name in BINARY), *(f"i{name}" for name in BINARY), *OTHER):
    setattr(SealedWeight, f"__{_name}__", _refuse_operator)


def _bypass(layer_name: str) -> AttributeError:
    return AttributeError(
        f"{layer_name} is quantized: using the values of its weight directly, as the module around it may do, would "
        "bypass the quantizers. To look at or change the float values use .layer.weight of the quantized layer; to "
        f"leave the layer float, prepare(..., skip=[{layer_name!r}])"
    )


def refuse_weight(layer_name: str, weight: Tensor, value: object) -> NoReturn:
    """Raise a ValueError: `value` cannot take the place of `weight`."""
    description = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise ValueError(
        f"{layer_name}: its weight was set to {description}; expected an nn.Parameter of shape {tuple(weight.shape)}"
    )
