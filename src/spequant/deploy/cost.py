"""What a network costs layer by layer: bits, ranges, bytes, multiply-accumulates, bit operations. Measures no time."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spequant.calibration.batch_norm import modes_kept
from spequant.calibration.batches import cloned, run_model
from spequant.deploy.onnx_quant import weight_codes
from spequant.deploy.program import Float, Program, Weighted
from spequant.layers import QuantizedLayer
from spequant.networks import EMBEDDINGS, QUANTIZABLE
from spequant.quantizers.base import Quantizer

FLOAT = 32


@dataclass(frozen=True)
class LayerCost:
    """One layer, for one sample.

    weight_bits, act_bits: of the weight and the input; 32: float. weight_range, act_range: (low, high) or None.
    size: bytes of weight and bias, the weight at its bits; float_size: in fp32. macs: multiply-accumulates.
    bit_operations: macs * weight_bits * act_bits (van Baalen et al. 2020, arXiv 2005.07093).
    """

    name: str
    kind: str
    weight_bits: int
    act_bits: int
    weight_range: tuple[float, float] | None
    act_range: tuple[float, float] | None
    weights: int
    size: int
    float_size: int
    macs: int

    @property
    def bit_operations(self) -> int:
        return self.macs * self.weight_bits * self.act_bits

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "bit_operations": self.bit_operations}


def model_costs(model: nn.Module, example: Tensor | Mapping[str, Tensor]) -> list[LayerCost]:
    """Of every convolution, linear layer and embedding of a prepared and calibrated, or a float, `model`.

    example: an input, batch first, of which one sample is run; or inputs by name. ValueError: nothing to count.
    """
    one = {n: x[:1] for n, x in example.items()} if isinstance(example, Mapping) else example[:1]
    found: dict[str, LayerCost] = {}
    inside = {id(m.layer) for m in model.modules() if isinstance(m, QuantizedLayer)}
    layers = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, QuantizedLayer) or (isinstance(m, QUANTIZABLE + EMBEDDINGS) and id(m) not in inside)
    }

    def hook(name: str):
        def measure(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            cost = _cost(name, module, args[0], output)
            earlier = found[name].macs if name in found else 0  # a layer may be called more than once
            found[name] = replace(cost, macs=cost.macs + earlier)

        return measure

    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        with modes_kept(model), torch.no_grad():
            run_model(model.eval(), cloned(one))
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError("model ran no convolution, linear layer or embedding; there is nothing to count")
    return list(found.values())


def _cost(name: str, module: nn.Module, x: Tensor, output: Tensor) -> LayerCost:
    quantized = isinstance(module, QuantizedLayer)
    layer: Any = module.layer if quantized else module
    weight = layer.weight
    # Each weight meets every output position once; of a transposed convolution, whose rows are inputs, every input one.
    met = x if isinstance(layer, nn.ConvTranspose2d) else output
    positions = met.numel() // len(weight)
    weight_quantizer, act_quantizer = (module.weight_quantizer, module.act_quantizer) if quantized else (None, None)
    bits, act_bits = _bits(weight_quantizer), _bits(act_quantizer)
    own_bias = getattr(layer, "bias", None)  # embeddings have none
    bias = 0 if own_bias is None else 4 * own_bias.numel()
    return LayerCost(
        name,
        type(layer).__name__,
        bits,
        act_bits,
        _range(weight_quantizer, weight),
        _range(act_quantizer, x),
        weight.numel(),
        (weight.numel() * bits + 7) // 8 + bias,
        4 * weight.numel() + bias,
        0 if isinstance(layer, EMBEDDINGS) else weight.numel() * positions,  # rows are looked up
    )


def _bits(q: Quantizer | None) -> int:
    """In use: the number that the grid in use needs."""
    return FLOAT if q is None or q.bits is None else max(1, (int(q.levels) - 1).bit_length())


def _range(q: Quantizer | None, x: Tensor) -> tuple[float, float] | None:
    if q is None or q.bits is None:
        return None
    low, high = q.bounds(x)
    return float(low.min()), float(high.max())


def program_costs(program: Program) -> list[LayerCost]:
    """Of every integer and float layer of an integer graph; what is computed at two precisions counts twice.

    weight_bits: that the codes need; weight_range: with batch norm's factor in it; size: as that graph stores them,
    8 bits a weight and 32 a bias.
    """
    found = []
    for op in program.ops:
        if isinstance(op, Weighted):
            codes, scale = weight_codes(op)
            low, high = int(codes.min()), int(codes.max())
            values = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
            apart = max(1, int(np.gcd.reduce(codes - low, axis=None)))  # 2 of SAWB's odd codes
            grid = op.inputs[0].grid
            assert grid is not None
            found.append(
                LayerCost(
                    op.name,
                    "Conv" if op.spatial else "Gemm",
                    max(1, ((high - low) // apart).bit_length()),
                    (grid.high - grid.low).bit_length(),
                    (float(values.min()), float(values.max())),
                    (grid.low * grid.step, grid.high * grid.step),
                    op.weight.numel(),
                    op.weight.numel() + 4 * len(scale),
                    4 * (op.weight.numel() + len(scale)),
                    _macs(op.weight, op.shape),
                )
            )
        elif isinstance(op, Float) and op.kind == "layer":
            weight = op.tensors[0]
            size, macs = 4 * sum(t.numel() for t in op.tensors), _macs(weight, op.shape)
            found.append(LayerCost(op.name, "float", FLOAT, FLOAT, None, None, weight.numel(), size, size, macs))
    return found


def _macs(weight: Tensor, shape: tuple[int, ...]) -> int:
    return weight.numel() * int(np.prod(shape[2:], dtype=np.int64))


def totals(costs: list[LayerCost]) -> dict[str, float]:
    """Sums, and how many times as much the same layers take in fp32."""
    operations = sum(c.bit_operations for c in costs)
    macs, size, weights = sum(c.macs for c in costs), sum(c.size for c in costs), sum(c.weights for c in costs)
    return {
        "weights": weights,
        "size": size,
        "macs": macs,
        "bit_operations": operations,
        "times_smaller_than_fp32": sum(c.float_size for c in costs) / size,
        "times_fewer_bit_operations_than_fp32": macs * FLOAT * FLOAT / operations,
    }
