"""A table of a prepared network: its layers, bits and ranges, what stays float, and its additions."""

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

TABLE_COLUMNS = ("layer", "kind", "weight", "input", "input's range")


@dataclass(frozen=True)
class Summary:
    """A prepared network in words; `str` of it is a table.

    Attributes:
        rows: (name, kind, weight, input, range of the input) for each layer, addend and factor, as in `TABLE_COLUMNS`.
        lines: What stays float, and which additions were found.
    """

    rows: list[tuple[str, ...]]
    lines: list[str]

    def __str__(self) -> str:
        table = [TABLE_COLUMNS, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(TABLE_COLUMNS))]
        aligned = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*aligned, "", *self.lines])


def summary(model: nn.Module) -> Summary:
    """Print what a prepared `model` quantizes, and return it.

    Args:
        model: What `prepare` returned, calibrated or not.

    Returns:
        Each layer with its kind, bits and ranges; layers that are left float; residual additions, quantized or not.

    Raises:
        ValueError: `model` is not prepared.
    """
    table = _summarized(model)
    print(table)
    return table


def _summarized(model: nn.Module) -> Summary:
    rows: list[tuple[str, ...]] = []
    left_float: list[str] = []
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
            left_float.append(f"{name} ({type(module).__name__})")
        if OUTPUT in module._modules:
            addends += 1
            q: Quantizer = module._modules[OUTPUT]  # type: ignore[assignment]
            rows.append((f"{name}, its output", "addend", "", _bits(q), _range(q)))
    if not rows:
        raise ValueError("model is not prepared: it holds no quantized layer; call spequant.prepare first")
    lines = [f"left float: {some_of(left_float, 20)}" if left_float else "no layer is left float"]
    return Summary(rows, [*lines, *_additions(model, addends)])


def _additions(model: nn.Module, addends: int) -> list[str]:
    """Return the lines about additions; addends: how many are quantized."""
    lines = [f"quantized addends of residual additions: {addends}"]
    try:
        additions = find_additions(without_quantizers(model))
    except ValueError as error:
        return [*lines, f"unmarked additions were not looked for: the network cannot be traced ({error})"]
    quantized = {name for name, module in model.named_modules() if OUTPUT in module._modules}
    float_pairs = [f"{one} + {other}" for one, other in additions.pairs if not {one, other} <= quantized]
    if float_pairs:
        lines.append(f"additions found that stay float: {some_of(float_pairs, 20)}")
    if additions.missed:
        lines.append("additions not found, which stay float (mark them: modules with residual_addition = True):")
        lines += [f"  {missed}" for missed in additions.missed]
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
    low, high = quantizer.grid_bounds(torch.zeros(1))
    return f"{float(low if quantizer.signed else 0.0):.4g} to {float(high):.4g}"
