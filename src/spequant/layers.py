"""Quantized layers, made from float ones: the float layer stays inside, its weight and input pass a quantizer first.

No policy here: which layer gets which quantizer is decided in `preparation`.
"""

from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from spequant.quantizers.base import Quantizer

OUTPUT = "output_quantizer"
"""Where a module keeps the quantizer of what it returns, an addend of an addition that its network does not mark."""


class SealedWeight:
    """The weight of the quantized layer `own` as everyone outside may see it: its type, device, shape and gradient can
    be read, as networks do to convert their input; it can be frozen, and its `data` and `grad` replaced.

    AttributeError, or from torch's functions the same: any other use, which would read or change values that the
    quantizers are to see first.
    """

    TOLD = ("dtype", "device", "layout", "shape", "ndim", "requires_grad", "grad", "size", "dim", "numel", "stride")
    TOLD += ("is_floating_point", "is_contiguous", "element_size", "nbytes", "is_leaf", "is_cuda", "is_meta")
    WRITTEN = ("data", "grad", "requires_grad")
    _own = "this layer"  # of a copy that is being made, which asks before it has its own

    def __init__(self, weight: Tensor, own: str):
        vars(self).update(_weight=weight, _own=own)

    def __getattr__(self, name: str) -> Any:
        if name in self.TOLD:
            return getattr(self._weight, name)
        raise _bypass(self._own)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.WRITTEN:
            raise _bypass(self._own)
        if name == "data" and value.shape != self._weight.shape:
            _refuse_weight(self._own, self._weight, value)
        setattr(self._weight, name, value)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        self._weight.requires_grad_(requires_grad)
        return self

    def __len__(self) -> int:
        return len(self._weight)

    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        raise _bypass(next((x._own for x in given if isinstance(x, SealedWeight)), "this layer"))


def _refuse_operator(self: SealedWeight, *_: object) -> Any:
    raise _bypass(self._own)


BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
OTHER = ("neg", "pos", "abs", "invert", "getitem", "setitem", "iter", "contains", "array", "float", "int", "index")
OTHER += ("bool", "eq", "ne", "lt", "le", "gt", "ge")
for _name in (*BINARY, *(f"r{name}" for name in BINARY), *(f"i{name}" for name in BINARY), *OTHER):
    setattr(SealedWeight, f"__{_name}__", _refuse_operator)


def _bypass(own: str) -> AttributeError:
    return AttributeError(
        f"{own} is quantized: using the values of its weight directly, as the module around it may do, would bypass "
        f"the quantizers. To look at or change the float values use .layer.weight of the quantized layer; to leave the "
        f"layer float, prepare(..., skip=[{own!r}])"
    )


def _refuse_weight(own: str, weight: Tensor, value: object) -> NoReturn:
    given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise ValueError(f"{own}: its weight was set to {given}; expected an nn.Parameter of shape {tuple(weight.shape)}")


class Wrapper(nn.Module):
    """A module of a network, under the attribute `INNER`, with quantizers around it, of activations under `ACTS`.
    Whatever else the inner module has (bias, out_features, stride ...) is read and written through the wrapper."""

    INNER: str
    ACTS: tuple[str, ...]

    def _holder(self, name: str) -> nn.Module | None:
        """The inner module, if `name` is an attribute of its own rather than of the wrapper."""
        inner = vars(self).get("_modules", {}).get(self.INNER)
        own = name.startswith("_") or name.endswith("_quantizer") or name == self.INNER
        if own or inner is None or name in vars(self) or hasattr(type(self), name) or not hasattr(inner, name):
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


class QuantizedLayer(Wrapper):
    """`layer` (of `QUANTIZABLE` or `EMBEDDINGS`, or a subclass, with its own forward) on quantized weight and input. A
    subclass that computes with another weight than its own, such as a standardised one, offers the two halves of its
    forward: `effective_weight()` and `run_with(input, weight)`; else its own weight would be quantized before that.

    weight_quantizer, act_quantizer: None leaves that side float.
    """

    INNER = "layer"
    ACTS = ("act_quantizer",)

    def __init__(self, layer: nn.Module, weight_quantizer: Quantizer | None, act_quantizer: Quantizer | None):
        super().__init__()
        self.layer = layer
        self.weight_quantizer = weight_quantizer
        self.act_quantizer = act_quantizer

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.act_quantizer is not None:
            input = self.act_quantizer(input)
        if self.weight_quantizer is None:
            return self.layer(input, *args, **kwargs)
        _check_own(self.layer, self.weight_quantizer.name)
        return run_with(self.layer, self.weight_quantizer(self.float_weight), input, *args, **kwargs)

    @property
    def float_weight(self) -> Tensor:
        """What is quantized: the layer's weight, or what the layer makes of it (`effective_weight`) to compute with."""
        return effective_weight(self.layer)

    def __getattr__(self, name: str) -> Any:
        """The weight as a `SealedWeight`."""
        if name == "weight":
            layer: Any = self.layer
            return SealedWeight(layer.weight, self._name())
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self._set_weight(value)
        else:
            super().__setattr__(name, value)

    def _set_weight(self, value: Any) -> None:
        layer: Any = self.layer
        if isinstance(value, SealedWeight):
            if value._weight is not layer.weight:
                raise ValueError(
                    f"{self._name()}: its weight was set to that of {value._own}, which has another quantizer; tie the "
                    "weights in the float model, then prepare: layers with one weight share its quantizer"
                )
        elif not isinstance(value, nn.Parameter) or value.shape != layer.weight.shape:
            _refuse_weight(self._name(), layer.weight, value)
        else:
            layer.weight = value

    def _name(self) -> str:
        quantizer = self.weight_quantizer or self.act_quantizer
        return quantizer.name if quantizer is not None else "this layer"


def run_with(layer: nn.Module, weight: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`layer`(input, *args, **kwargs) as if `weight`, of the shape of its own, were its weight.

    `layer` itself is only read, so that several threads may run it at once. Its hooks run, but for a layer that has a
    `run_with` of its own, and see a module that shares everything with it but the weight. RuntimeError: a hook that
    writes another weight.
    """
    if hasattr(layer, "run_with"):
        return layer.run_with(input, weight)  # type: ignore[operator]
    if torch.compiler.is_compiling():  # where swapping the parameter is a matter of the graph alone
        return functional_call(layer, {"weight": weight}, (input, *args), kwargs)
    twin = _with_weight(layer, weight)
    version = None if weight.is_inference() else weight._version
    output = twin(input, *args, **kwargs)
    kept = twin._parameters.get("weight") is weight and "weight" not in vars(twin)
    if not kept or (version is not None and weight._version != version):
        raise RuntimeError(
            f"a hook of {layer!r} writes its weight as it runs, past the quantizer; remove the hook, or leave the "
            "layer float: prepare(..., skip=[...])"
        )
    return output


def _with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """A module that shares everything with `layer` but has `weight`."""
    twin = object.__new__(type(layer))
    vars(twin).update(vars(layer))
    vars(twin).pop("weight", None)  # where a replica of DataParallel keeps it
    vars(twin)["_parameters"] = {**layer._parameters, "weight": weight}
    return twin


def _check_own(layer: nn.Module, name: str) -> None:
    """RuntimeError: the weight of `layer` is no parameter of its own any more, but computed before each forward, past
    the quantizer. Replicas of DataParallel keep theirs elsewhere."""
    if "weight" not in layer._parameters and "weight" not in vars(layer).get("_former_parameters", ()):
        raise RuntimeError(
            f"{name}: its weight is computed from other tensors since prepare (pruning, weight or spectral norm, a "
            f"parametrization, an adapter such as LoRA: the layer is now a {type(layer).__name__}), which would bypass "
            "its quantizer; make it a plain parameter again (prune.remove, remove_parametrizations, merge_and_unload), "
            "or change the float model and prepare that"
        )
    if any(kind.__name__ == "FSDPModule" for kind in type(layer).__mro__):
        raise RuntimeError(
            f"{name}: fully_shard was called on the float layer inside the quantized one, whose weight is whole only "
            "after the quantizer has read it; call it on the quantized layer, on blocks of them, or on the whole model"
        )


def effective_weight(layer: nn.Module) -> Tensor:
    """The weight that `layer` computes with: its own, or standardised by its method `effective_weight`, in which case
    its method `run_with(input, weight)` computes with another one."""
    own: Any = layer
    return own.effective_weight() if hasattr(layer, "effective_weight") else own.weight


class QuantizedAdd(Wrapper):
    """A marked residual addition on quantized addends."""

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
    """A marked product of two activations (attention's q k and p v), both quantized."""

    INNER = "product"
    ACTS = ("left_quantizer", "right_quantizer")

    def __init__(self, product: nn.Module, left_quantizer: Quantizer, right_quantizer: Quantizer):
        super().__init__()
        self.product = product
        self.left_quantizer = left_quantizer
        self.right_quantizer = right_quantizer

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.product(self.left_quantizer(left), self.right_quantizer(right))


def quantize_output(module: nn.Module, quantizer: nn.Module) -> None:
    """Let `module`, in place, return its output quantized."""
    module.add_module(OUTPUT, quantizer)
    module.register_forward_hook(_quantize_output)


def leave_output(module: nn.Module) -> None:
    """Undo `quantize_output`."""
    del module._modules[OUTPUT]
    for key in [k for k, hook in module._forward_hooks.items() if hook is _quantize_output]:
        del module._forward_hooks[key]


def _quantize_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return module._modules[OUTPUT](output)  # type: ignore[misc]


LEAVES = (Quantizer, Wrapper)
"""What a tracer of torch.fx must not look into."""


def slots_of(module: nn.Module) -> tuple[str, ...]:
    """The attributes of `module` that may hold an activation quantizer."""
    own = module.ACTS if isinstance(module, Wrapper) else ()
    return (*own, *((OUTPUT,) if OUTPUT in module._modules else ()))


def act_slots(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """(name of the layer, the layer, attribute) of every place that holds an activation quantizer, in model order."""
    return [
        (name, module, attribute)
        for name, module in model.named_modules()
        for attribute in slots_of(module)
        if getattr(module, attribute) is not None
    ]


def act_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Activation quantizers by name, each once, in model order."""
    slots = [(f"{name}.{attribute}", getattr(module, attribute)) for name, module, attribute in act_slots(model)]
    return _named(slots)


def weight_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Weight quantizers by name, each once, in model order."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, QuantizedLayer)]
    return _named([(f"{n}.weight_quantizer", m.weight_quantizer) for n, m in layers if m.weight_quantizer is not None])


def _named(slots: list[tuple[str, Quantizer]]) -> dict[str, Quantizer]:
    """Each quantizer once, by its own name; by its path where another one has that name (two prepared networks in one
    model)."""
    named: dict[str, Quantizer] = {}
    seen: set[int] = set()
    for path, q in slots:
        if id(q) not in seen:
            seen.add(id(q))
            named[path if q.name in named else q.name] = q
    return named


def weight_bits(model: nn.Module) -> int:
    """Bits that the parameters take, quantizers aside: quantized weights at their width, everything else at 32."""
    bits = 0
    layers = {id(m.layer) for m in model.modules() if isinstance(m, QuantizedLayer) and m.weight_quantizer is not None}
    # A weight that a float module reads as well, a tied embedding, has to be there in float.
    shared = {id(p) for m in model.modules() if id(m) not in layers for p in m.parameters(recurse=False)}
    width = {
        id(m.layer.weight): m.weight_quantizer.bits or 32
        for m in model.modules()
        if isinstance(m, QuantizedLayer) and m.weight_quantizer is not None and id(m.layer.weight) not in shared
    }
    ranges = {id(p) for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in ranges:
            bits += parameter.numel() * width.get(id(parameter), 32)
    return bits
