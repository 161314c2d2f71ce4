"""What no file can hold, refused by name: parameters that are not fp32, forward hooks and other forwards that are hung
on modules from outside (graphs are made of modules as their classes have them), networks without integers."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as every

from spequant.layers import QuantizedAdd, QuantizedLayer, QuantizedProduct
from spequant.quantizers import Quantizer

KNOWN_HOOKS = ("spequant.layers", "torch.nn.utils.")
"""Where hooks come from that graphs have: quantizers of outputs; what makes a layer's weight (pruning, weight norm)."""


class Refused(ValueError):
    """What no format with integers takes."""


Named = Iterable[tuple[str, nn.Module]]


def check_dtype(model: nn.Module) -> None:
    """ValueError: parameters that are not fp32."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise Refused(f"{name} is {parameter.dtype}; expected torch.float32: call model.float() before")


def on_no_integers(model: nn.Module) -> Refused:
    """What to raise where nothing that the answer of `model` depends on computes on integers."""
    name, layers = type(model).__name__, sum(isinstance(m, QuantizedLayer) for m in model.modules())
    if not layers:
        return Refused(f"{name} is a float network: no layer of it is quantized; call spequant.prepare before")
    return Refused(
        f"{name} computes nothing on integers, though {layers} of its layers are quantized: that takes a layer whose "
        "weight and input both are, prepare(weight=..., act=...), and on which the output depends"
    )


def check_hooks(modules: Named) -> None:
    """ValueError names one of `modules` that has a forward hook, or a hook of all modules that there are."""
    for name, module in modules:
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not str(getattr(hook, "__module__", "")).startswith(KNOWN_HOOKS):
                raise _left_out(name or type(module).__name__, "forward hook", hook)
    for hook in (*every._global_forward_pre_hooks.values(), *every._global_forward_hooks.values()):
        raise _left_out("all modules", "forward hook", hook)


def check_forwards(modules: Named) -> None:
    """ValueError names one of `modules` that has been given another forward than its class has."""
    for name, module in modules:
        if "forward" in vars(module) and not hasattr(module, "_orig_mod"):  # which torch.compile's wrapper has
            raise _left_out(name or type(module).__name__, "forward, put on the module itself,", module.forward)


def quantized_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Quantized layers, additions, products and quantizers of `model`, and all that is in them, by name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer | QuantizedAdd | QuantizedProduct | Quantizer):
            yield from module.named_modules(prefix=name)


def _left_out(name: str, what: str, function: Any) -> Refused:
    called = getattr(function, "__qualname__", type(function).__qualname__)
    return Refused(
        f"{name}: the {what} {called} would not be in the exported file; remove it before (a hook by its handle: "
        "handle.remove()), or write what it does into the network's forward"
    )
