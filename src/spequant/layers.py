"""Quantized layers, made from float ones: the float layer stays inside, its weight and input pass a quantizer first.

No policy here: which layer gets which quantizer is decided in `prepare.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spequant.quantizers.base import Quantizer


class SealedWeight:
    """The weight of the quantized layer `own` as the module around it may see it: networks ask for its type or device
    to convert their input. AttributeError, or from torch's functions the same: a use of its values."""

    TOLD = ("dtype", "device", "shape", "ndim", "requires_grad", "size", "dim", "numel", "is_floating_point")
    _own = "this layer"  # of a copy that is being made, which asks before it has its own

    def __init__(self, weight: Tensor, own: str):
        self._weight, self._own = weight, own

    def __getattr__(self, name: str) -> Any:
        if name in self.TOLD:
            return getattr(self._weight, name)
        raise _bypass(self._own)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        raise _bypass(next((x._own for x in given if isinstance(x, SealedWeight)), "this layer"))


def _bypass(own: str) -> AttributeError:
    return AttributeError(
        f"{own} is quantized: reading its weight directly, as the module around it does, would bypass the quantizers; "
        f"leave the layer float with prepare(..., skip=[{own!r}])"
    )


class QuantizedLayer(nn.Module):
    """`layer` (of `QUANTIZABLE` or `EMBEDDINGS`, or a subclass, with its own forward) on quantized weight and input. A
    subclass that computes with another weight than its own, such as a standardised one, offers the two halves of its
    forward: `effective_weight()` and `run_with(input, weight)`; else its own weight would be quantized before that.

    weight_quantizer, act_quantizer: None leaves that side float.
    """

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
        """Whatever else the float layer has (bias, out_features ...); its weight, whose values would bypass
        quantization, tells its type, device and shape alone."""
        if name == "weight":
            quantizer = self.weight_quantizer or self.act_quantizer
            layer: Any = self.layer
            return SealedWeight(layer.weight, quantizer.name if quantizer is not None else "this layer")
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("layer", "_modules", "_parameters", "_buffers"):
                raise
            return getattr(self.layer, name)


def run_with(layer: nn.Module, weight: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`layer`(input, *args, **kwargs) as if `weight`, of the shape of its own, were its weight.

    `layer` itself is only read, so that several threads may run it at once. Its hooks run, but for a layer that has a
    `run_with` of its own, and see a module that shares everything with it but the weight.
    """
    if hasattr(layer, "run_with"):
        return layer.run_with(input, weight)  # type: ignore[operator]
    if torch.compiler.is_compiling():  # where swapping the parameter is a matter of the graph alone
        return functional_call(layer, {"weight": weight}, (input, *args), kwargs)
    return _with_weight(layer, weight)(input, *args, **kwargs)


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
            "parametrization), which would bypass its quantizer; make it a plain parameter again (prune.remove, "
            "remove_parametrizations), or do so before prepare and call prepare then"
        )


def effective_weight(layer: nn.Module) -> Tensor:
    """The weight that `layer` computes with: its own, or standardised by its method `effective_weight`, in which case
    its method `run_with(input, weight)` computes with another one."""
    own: Any = layer
    return own.effective_weight() if hasattr(layer, "effective_weight") else own.weight


class QuantizedAdd(nn.Module):
    """A marked residual addition on quantized addends."""

    def __init__(self, add: nn.Module, branch_quantizer: Quantizer, shortcut_quantizer: Quantizer):
        super().__init__()
        self.add = add
        self.branch_quantizer = branch_quantizer
        self.shortcut_quantizer = shortcut_quantizer

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return self.add(self.branch_quantizer(branch), self.shortcut_quantizer(shortcut))


class QuantizedProduct(nn.Module):
    """A marked product of two activations (attention's q k and p v), both quantized."""

    def __init__(self, product: nn.Module, left_quantizer: Quantizer, right_quantizer: Quantizer):
        super().__init__()
        self.product = product
        self.left_quantizer = left_quantizer
        self.right_quantizer = right_quantizer

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.product(self.left_quantizer(left), self.right_quantizer(right))


OUTPUT = "output_quantizer"
"""Where a module keeps the quantizer of what it returns, an addend of an addition that its network does not mark."""


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


SLOTS = {
    QuantizedLayer: ("act_quantizer",),
    QuantizedAdd: ("branch_quantizer", "shortcut_quantizer"),
    QuantizedProduct: ("left_quantizer", "right_quantizer"),
}


def slots_of(module: nn.Module) -> tuple[str, ...]:
    """The attributes of `module` that may hold an activation quantizer."""
    return (*SLOTS.get(type(module), ()), *((OUTPUT,) if OUTPUT in module._modules else ()))


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
