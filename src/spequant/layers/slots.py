"""Where a model holds its quantizers: the attributes of its modules, the quantizers by name, and their bits."""

from typing import Any

from torch import Tensor, nn

from spequant.layers.layer import QuantizedLayer
from spequant.layers.wrapper import Wrapper
from spequant.quantizers.base import Quantizer

OUTPUT = "output_quantizer"
"""Attribute of a module for the quantizer of its output, which is an addend of an addition that is not marked."""

LEAVES = (Quantizer, Wrapper)
"""Modules that a tracer of torch.fx must treat as leaves."""


def quantize_output(module: nn.Module, quantizer: nn.Module) -> None:
    """Quantize the output of `module`, in place, by a forward hook."""
    module.add_module(OUTPUT, quantizer)
    module.register_forward_hook(_quantize_output)


def leave_output(module: nn.Module) -> None:
    """Undo `quantize_output`."""
    del module._modules[OUTPUT]
    for key in [k for k, hook in module._forward_hooks.items() if hook is _quantize_output]:
        del module._forward_hooks[key]


def _quantize_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return module._modules[OUTPUT](output)  # type: ignore[misc]


def slots_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the attributes of `module` that may hold an activation quantizer."""
    inputs = module.ACTS if isinstance(module, Wrapper) else ()
    return (*inputs, *((OUTPUT,) if OUTPUT in module._modules else ()))


def act_slots(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Return every place with an activation quantizer, in model order: (name of module, module, attribute)."""
    return [
        (name, module, attribute)
        for name, module in model.named_modules()
        for attribute in slots_of(module)
        if getattr(module, attribute) is not None
    ]


def act_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Return the activation quantizers by name, each once, in model order."""
    slots = [(f"{name}.{attribute}", getattr(module, attribute)) for name, module, attribute in act_slots(model)]
    return _named(slots)


def weight_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Return the weight quantizers by name, each once, in model order."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, QuantizedLayer)]
    return _named([(f"{n}.weight_quantizer", m.weight_quantizer) for n, m in layers if m.weight_quantizer is not None])


def _named(slots: list[tuple[str, Quantizer]]) -> dict[str, Quantizer]:
    """Return each quantizer once, by its name; by its path if the name is taken (two prepared networks in a model)."""
    named: dict[str, Quantizer] = {}
    seen: set[int] = set()
    for path, q in slots:
        if id(q) not in seen:
            seen.add(id(q))
            named[path if q.name in named else q.name] = q
    return named


def weight_bits(model: nn.Module) -> int:
    """Return the bits that the parameters take: quantized weights at their bits, all others at 32, ranges not counted.

    A weight that a float module reads as well, such as a tied embedding, has to be there in float and counts 32.
    """
    bits = 0
    layers = {id(m.layer) for m in model.modules() if isinstance(m, QuantizedLayer) and m.weight_quantizer is not None}
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
