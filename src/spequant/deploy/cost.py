"""What a network costs layer by layer: bits, ranges, bytes, multiply-accumulates, bit operations. Measures no time.

Multiply-accumulates of a network are counted by torch's own counter, as it runs; those of a program follow from shapes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spequant.calibration.batches import cloned, modes_kept, run_model
from spequant.deploy.c.manifest import read_manifest
from spequant.deploy.integers import smallest_codes
from spequant.deploy.operations import FloatLayer, Weighted
from spequant.deploy.packed_file import layer_facts
from spequant.deploy.program import Program
from spequant.deploy.tflite_file import read_head
from spequant.layers import QuantizedLayer
from spequant.networks import EMBEDDINGS, QUANTIZABLE
from spequant.quantizers.base import Quantizer

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """One layer, for one sample.

    weight_bits, act_bits: of the weight and the input; 32: float. weight_range, act_range: (low, high) or None.
    size: bytes of weight and bias, the weight at its bits; float_size: in fp32. macs: multiply-accumulates; None: not
    known without the network. bit_operations: macs * weight_bits * act_bits (van Baalen et al. 2020, arXiv 2005.07093).
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
    macs: int | None

    @property
    def bit_operations(self) -> int:
        if self.macs is None:
            raise ValueError(f"{self.name}: operations are not known without the network")
        return self.macs * self.weight_bits * self.act_bits

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "bit_operations": None if self.macs is None else self.bit_operations}


@torch.no_grad()
def model_costs(model: nn.Module, example: Tensor | Mapping[str, Tensor]) -> list[LayerCost]:
    """Of every convolution, linear layer and embedding of a prepared and calibrated, or a float, `model`.

    Args:
        model: the network; it stays as it is.
        example: an input, batch first, of which one sample is run; or inputs by name.

    Raises:
        ValueError: nothing to count.
    """
    one = {n: x[:1] for n, x in example.items()} if isinstance(example, Mapping) else example[:1]
    inside = {id(m.layer) for m in model.modules() if isinstance(m, QuantizedLayer)}
    layers = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, QuantizedLayer) or (isinstance(m, QUANTIZABLE + EMBEDDINGS) and id(m) not in inside)
    }
    ranges: dict[str, tuple[float, float] | None] = {}

    def hook(name: str):
        def note(module: Any, args: tuple[Tensor, ...]) -> None:
            ranges[name] = _range(module.act_quantizer, args[0]) if isinstance(module, QuantizedLayer) else None

        return note

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    counter = FlopCounterMode(display=False)
    try:
        with modes_kept(model), counter:
            run_model(model.eval(), cloned(one))
    finally:
        for handle in handles:
            handle.remove()
    if not ranges:
        raise ValueError("model ran no convolution, linear layer or embedding; there is nothing to count")
    macs = _macs_run(model, counter)
    return [_cost(name, layers[name], act_range, macs[id(layers[name])]) for name, act_range in ranges.items()]


def _macs_run(model: nn.Module, counter: FlopCounterMode) -> dict[int, int]:
    """{id of a module: multiply-accumulates of all its calls}, but for those by which a quantizer finds its range."""
    counts, root, macs = counter.get_flop_counts(), type(model).__name__, dict[int, int]()
    for name, module in model.named_modules(remove_duplicate=False):  # the counter knows it by one of its names
        operations = counts.get(f"{root}.{name}" if name else root, {})
        macs[id(module)] = macs.get(id(module), 0) + sum(operations.values()) // 2  # one is two operations
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            finding = {id(q): macs[id(q)] for q in (module.weight_quantizer, module.act_quantizer) if q is not None}
            macs[id(module)] -= sum(finding.values())
    return macs


def _cost(name: str, module: nn.Module, act_range: tuple[float, float] | None, macs: int) -> LayerCost:
    quantized = isinstance(module, QuantizedLayer)
    layer: Any = module.layer if quantized else module
    weight, bias = layer.weight, getattr(layer, "bias", None)  # embeddings have no bias
    weight_quantizer, act_quantizer = (module.weight_quantizer, module.act_quantizer) if quantized else (None, None)
    bits, bias_size = _bits(weight_quantizer), 0 if bias is None else 4 * bias.numel()
    return LayerCost(
        name,
        type(layer).__name__,
        bits,
        _bits(act_quantizer),
        _range(weight_quantizer, weight),
        act_range,
        weight.numel(),
        (weight.numel() * bits + 7) // 8 + bias_size,
        4 * weight.numel() + bias_size,
        macs,
    )


def _bits(q: Quantizer | None) -> int:
    """In use: the number that the grid in use needs."""
    return FLOAT_BITS if q is None or q.bits is None else max(1, (int(q.levels) - 1).bit_length())


def _range(q: Quantizer | None, x: Tensor) -> tuple[float, float] | None:
    if q is None or q.bits is None:
        return None
    low, high = q.grid_bounds(x)
    return float(low.min()), float(high.max())


def program_costs(program: Program) -> list[LayerCost]:
    """Of every integer and float layer of an integer graph; what is computed at two precisions counts twice.

    weight_bits: that the codes need; weight_range: with batch norm's factor in it; size: as that graph stores them,
    8 bits per weight and 32 per bias.
    """
    costs = []
    for op in program.ops:
        if isinstance(op, Weighted):
            codes, scale = smallest_codes(op.weight, op.scale)
            low, high = int(codes.min()), int(codes.max())
            values = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
            apart = max(1, int(np.gcd.reduce(codes - low, axis=None)))  # 2 of SAWB's odd codes
            grid = op.source
            costs.append(
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
        elif isinstance(op, FloatLayer):
            size, macs = 4 * (op.weight.numel() + op.bias.numel()), _macs(op.weight, op.shape)
            bits = FLOAT_BITS, FLOAT_BITS
            costs.append(LayerCost(op.name, "float", *bits, None, None, op.weight.numel(), size, size, macs))
    return costs


def packed_costs(path: str | Path) -> list[LayerCost]:
    """Of every quantized layer of a packed file, without its network: no multiply-accumulates, and no biases.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, or no packed file.
    """
    return [
        LayerCost(
            row["name"],
            "packed",
            row["weight_bits"] or FLOAT_BITS,
            row["act_bits"] or FLOAT_BITS,
            row["weight_range"],
            row["act_range"],
            row["weights"],
            row["size"],
            row["float_size"],
            None,
        )
        for row in layer_facts(Path(path))
    ]


def tflite_costs(path: str | Path) -> list[LayerCost]:
    """Of every layer of a file of --to tflite, as `program_costs` of what it was made of. Errors as `read_head`'s."""
    return [LayerCost(**row) for row in read_head(Path(path))["layers"]]


def c_costs(path: str | Path) -> list[LayerCost]:
    """Of every layer of a folder of --to c, as `program_costs` of what it was made of. Errors as `read_manifest`'s."""
    return [LayerCost(**row) for row in read_manifest(Path(path))["layers"]]


def _macs(weight: Tensor, shape: tuple[int, ...]) -> int:
    return weight.numel() * int(np.prod(shape[2:], dtype=np.int64))


def totals(costs: list[LayerCost]) -> dict[str, Any]:
    """Sums, and how many times as much the same layers take in fp32; None: not known."""
    size, weights = sum(c.size for c in costs), sum(c.weights for c in costs)
    counted = all(c.macs is not None for c in costs)
    macs = sum(c.macs or 0 for c in costs) if counted else None
    operations = sum(c.bit_operations for c in costs) if counted else None
    return {
        "weights": weights,
        "size": size,
        "macs": macs,
        "bit_operations": operations,
        "times_smaller_than_fp32": sum(c.float_size for c in costs) / size if size else None,
        "times_fewer_bit_operations_than_fp32": macs * FLOAT_BITS**2 / operations if macs and operations else None,
    }
