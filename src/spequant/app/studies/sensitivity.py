"""What each layer costs at few bits, and which widths make the least of a budget."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from spequant.app.recipes.images import measure
from spequant.calibration.batch_norm import batch_norm_mode, dropout_off, modes_kept
from spequant.data import ImageSet, eval_batches
from spequant.extras import needs
from spequant.layers import QuantizedLayer
from spequant.policies import Fixed, precision
from spequant.quantizers import Quantizer


def low_bit_layers(model: nn.Module, weight_bits: int | None, act_bits: int | None) -> list[str]:
    """Names of the layers whose weight and input have those bits: all but ends and what was given bits of its own."""
    return [
        name
        for name, m in model.named_modules()
        if isinstance(m, QuantizedLayer)
        and (m.weight_quantizer, m.act_quantizer) != (None, None)
        and [None if q is None else q.bits for q in (m.weight_quantizer, m.act_quantizer)] == [weight_bits, act_bits]
    ]


def losses_alone(model: nn.Module, data: ImageSet) -> tuple[float, dict[str, float]]:
    """(loss with nothing quantized, {layer: loss with it alone quantized}) of a calibrated `model`, in nats.

    Batch norm takes its statistics from the batches of `data`: running ones fit one of these networks alone.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    everyone = [q for q in model.modules() if isinstance(q, Quantizer)]
    with _float(everyone):
        losses = {"": _loss(model, data)}
    for name, layer in layers.items():
        own = (layer.weight_quantizer, layer.act_quantizer)
        with _float([q for q in everyone if q not in own]):
            losses[name] = _loss(model, data)
    return losses.pop(""), losses


def losses_raised(
    model: nn.Module, layers: Collection[str], data: ImageSet, bits: int = 8
) -> tuple[float, dict[str, float]]:
    """(loss as trained, {layer: loss with the input of it alone at `bits`}) of a trained `model`, in nats."""
    found = {}
    for name in layers:
        with precision(model, Fixed({name: bits})):
            found[name] = measure(model, data).loss
    return measure(model, data).loss, found


def assign(
    losses: Mapping[str, Mapping[int, float]], costs: Mapping[str, Mapping[int, float]], budget: float
) -> dict[str, int]:
    """{layer: bits} of the least sum of losses whose sum of costs is within `budget`: exact, by integer programming.

    losses, costs: {layer: {bits: ...}}, the choices of a layer. That losses of single layers add up is an assumption
    (as in HAWQ-V2, Dong et al. 2020, arXiv 1911.03852). ValueError: the budget is below what the cheapest takes.
    """
    scipy = needs("scipy.optimize", "report")
    least = sum(min(choices.values()) for choices in costs.values())
    if not least <= budget:
        raise ValueError(f"budget is {budget:,.0f}; expected {least:,.0f} or more, which the fewest bits take")
    choices = [(name, bits) for name, found in losses.items() for bits in found]
    one_each = np.array([[name == layer for name, _ in choices] for layer in losses], dtype=float)
    taken = np.array([[costs[name][bits] / max(budget, 1) for name, bits in choices]])
    found = scipy.milp(
        np.array([losses[name][bits] for name, bits in choices]),
        constraints=[scipy.LinearConstraint(one_each, 1, 1), scipy.LinearConstraint(taken, 0, budget / max(budget, 1))],
        integrality=np.ones(len(choices)),
        bounds=scipy.Bounds(0, 1),
    )
    if found.x is None:
        raise ValueError(f"no assignment was found: {found.message}")
    return {name: bits for (name, bits), on in zip(choices, found.x, strict=True) if on > 0.5}


@contextmanager
def _float(quantizers: Sequence[Quantizer]) -> Iterator[None]:
    """Inside, `quantizers` let their tensors through."""
    try:
        for q in quantizers:
            q.watch = _pass
        yield
    finally:
        for q in quantizers:
            q.watch = None


def _pass(*_: object) -> None:
    """Watching, a quantizer lets its tensor through unquantized."""


@torch.no_grad()
def _loss(model: nn.Module, data: ImageSet) -> float:
    with modes_kept(model), dropout_off(model), batch_norm_mode(model.train(), "leave"):
        losses = [float(F.cross_entropy(model(x), y)) * len(y) for x, y in eval_batches(data, 500)]
    return sum(losses) / len(data)
