"""What a prepared network is, in a table: its layers, bits and ranges, what stays float, additions found and not."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer, QuantizedProduct
from spequant.names import some_of
from spequant.networks import EMBEDDINGS, LEFT_FLOAT, QUANTIZABLE
from spequant.preparation.additions import find_additions
from spequant.preparation.placement import without_quantizers
from spequant.quantizers import Quantizer

HEAD = ("layer", "kind", "weight", "input", "input's range")


@dataclass(frozen=True)
class Summary:
    """rows: (name, kind, weight, input, range of the input) of each layer, addend and factor. lines: what stays float
    and which additions were found. `str` of it is a table."""

    rows: list[tuple[str, ...]]
    lines: list[str]

    def __str__(self) -> str:
        table = [HEAD, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
        aligned = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*aligned, "", *self.lines])


def summary(model: nn.Module) -> Summary:
    """Print, and return, what the prepared `model` quantizes: each layer with its kind, bits and ranges; layers left
    float; residual additions found and not found. ValueError: `model` is not prepared."""
    made = _made(model)
    print(made)
    return made


def _made(model: nn.Module) -> Summary:
    rows: list[tuple[str, ...]] = []
    left: list[str] = []
    inner = {id(m.layer) for m in model.modules() if isinstance(m, QuantizedLayer)}
    addends = 0
    for name, module in model.named_modules():
        name = name or "the network"
        if isinstance(module, QuantizedLayer):
            weight, act = module.weight_quantizer, module.act_quantizer
            rows.append((name, type(module.layer).__name__, _bits(weight), _bits(act), _range(act)))
        elif isinstance(module, QuantizedAdd | QuantizedProduct):
            addends += 2 * isinstance(module, QuantizedAdd)
            kind = "addend" if isinstance(module, QuantizedAdd) else "factor"
            for side in module.ACTS:
                q = getattr(module, side)
                rows.append((f"{name}.{side.removesuffix('_quantizer')}", kind, "", _bits(q), _range(q)))
        elif isinstance(module, (*QUANTIZABLE, *EMBEDDINGS, *LEFT_FLOAT)) and id(module) not in inner:
            left.append(f"{name} ({type(module).__name__})")
        if OUTPUT in module._modules:
            addends += 1
            q: Quantizer = module._modules[OUTPUT]  # type: ignore[assignment]
            rows.append((f"{name}, its output", "addend", "", _bits(q), _range(q)))
    if not rows:
        raise ValueError("model is not prepared: it holds no quantized layer; call spequant.prepare first")
    lines = [f"left float: {some_of(left, 20)}" if left else "no layer is left float"]
    return Summary(rows, [*lines, *_additions(model, addends)])


def _additions(model: nn.Module, addends: int) -> list[str]:
    lines = [f"quantized addends of residual additions: {addends}"]
    try:
        found = find_additions(without_quantizers(model))
    except ValueError as error:
        return [*lines, f"unmarked additions were not looked for: the network cannot be traced ({error})"]
    quantized = {name for name, module in model.named_modules() if OUTPUT in module._modules}
    float_ones = [f"{one} + {other}" for one, other in found.found if not {one, other} <= quantized]
    if float_ones:
        lines.append(f"additions found that stay float: {some_of(float_ones, 20)}")
    if found.missed:
        lines.append("additions not found, which stay float (mark them: modules with residual_addition = True):")
        lines += [f"  {missed}" for missed in found.missed]
    return lines


def _bits(quantizer: Quantizer | None) -> str:
    if quantizer is None or quantizer.bits is None:
        return "float"
    count = math.prod(quantizer.shape)
    ranges = f", {count} ranges" if count > 1 else ""
    return f"{quantizer.bits} bits, {type(quantizer).__name__}{ranges}"


@torch.no_grad()
def _range(quantizer: Quantizer | None) -> str:
    if quantizer is None or quantizer.bits is None:
        return ""
    if not quantizer.calibrated or quantizer.signed is None:
        return "not calibrated"
    if not quantizer.stored:
        return "of each tensor"
    low, high = quantizer.bounds(torch.zeros(1))
    return f"{float(low if quantizer.signed else 0.0):.4g} to {float(high):.4g}"
