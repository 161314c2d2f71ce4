"""The loss that each layer costs at few bits, and the best widths within a budget."""

from collections.abc import Collection, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from spequant.app.runs.images import measure
from spequant.calibration.batch_norm import batch_norm_mode, dropout_off
from spequant.calibration.batches import modes_kept
from spequant.data import ImageSet, eval_batches
from spequant.extras import needs
from spequant.layers import QuantizedLayer
from spequant.policies import Fixed, precision, unquantized
from spequant.quantizers import Quantizer

Cost = float | np.ndarray
RAISED_BITS = 8
LAYER_IMAGES = 1000
"""on which the loss of each layer is measured"""


def low_bit_layers(model: nn.Module, weight_bits: int | None, act_bits: int | None) -> list[str]:
    """Names of the layers whose weight and input have these bits: neither the ends nor layers with `overrides`."""
    return [
        name
        for name, m in model.named_modules()
        if isinstance(m, QuantizedLayer)
        and (m.weight_quantizer, m.act_quantizer) != (None, None)
        and [None if q is None else q.bits for q in (m.weight_quantizer, m.act_quantizer)] == [weight_bits, act_bits]
    ]


def losses_alone(model: nn.Module, data: ImageSet) -> tuple[float, dict[str, float]]:
    """The loss of a calibrated network with only one layer quantized.

    Batch norm takes its statistics from the batches of `data`: running ones fit only one of these networks.

    Returns:
        (loss with nothing quantized, {layer: loss with only that layer quantized}), nats.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    quantizers = [q for q in model.modules() if isinstance(q, Quantizer)]
    with unquantized(quantizers):
        losses = {"": _loss(model, data)}
    for name, layer in layers.items():
        of_layer = (layer.weight_quantizer, layer.act_quantizer)
        with unquantized([q for q in quantizers if q not in of_layer]):
            losses[name] = _loss(model, data)
    return losses.pop(""), losses


def losses_raised(model: nn.Module, layers: Collection[str], data: ImageSet) -> tuple[float, dict[str, float]]:
    """(loss as trained, {layer: loss with only the input of that layer at 8 bits}) of a trained `model`, nats."""
    losses = {}
    for name in layers:
        with precision(model, Fixed({name: RAISED_BITS})):
            losses[name] = measure(model, data).loss
    return measure(model, data).loss, losses


def assign(
    losses: Mapping[str, Mapping[int, float]], costs: Mapping[str, Mapping[int, Cost]], budget: float
) -> dict[str, int]:
    """The bits of each layer with the least sum of losses whose sum of costs is within `budget`.

    The answer is exact, by integer programming. That losses of single layers add up is an assumption.

    Args:
        losses: {layer: {bits: loss}}, the choices of each layer.
        costs: {layer: {bits: cost}} of the same choices; an array: of several kinds, e.g. bytes at each step, all of
            equal length.
        budget: the largest sum of costs, of each kind.

    Returns:
        {layer: bits}.

    Raises:
        ValueError: the budget is less than the fewest bits cost.

    References:
        HAWQ-V2, Dong et al. 2020, arXiv 1911.03852, which assumes the same.
    """
    scipy = needs("scipy.optimize", "report")
    fewest = [np.stack([np.atleast_1d(cost) for cost in choices.values()]).min(0) for choices in costs.values()]
    least = float(np.sum(fewest, axis=0).max())
    if not least <= budget:
        raise ValueError(f"budget is {budget:,.0f}; expected {least:,.0f} or more, which the fewest bits take")
    choices = [(name, bits) for name, widths in losses.items() for bits in widths]
    one_each = np.array([[name == layer for name, _ in choices] for layer in losses], dtype=float)
    cost = np.column_stack([np.atleast_1d(costs[name][bits]) / max(budget, 1) for name, bits in choices])
    solution = scipy.milp(
        np.array([losses[name][bits] for name, bits in choices]),
        constraints=[scipy.LinearConstraint(one_each, 1, 1), scipy.LinearConstraint(cost, ub=budget / max(budget, 1))],
        integrality=np.ones(len(choices)),
        bounds=scipy.Bounds(0, 1),
    )
    if solution.x is None:
        raise ValueError(f"no assignment was found: {solution.message}")
    return {name: bits for (name, bits), on in zip(choices, solution.x, strict=True) if on > 0.5}


@torch.no_grad()
def _loss(model: nn.Module, data: ImageSet) -> float:
    with modes_kept(model), dropout_off(model), batch_norm_mode(model.train(), "leave"):
        losses = [float(F.cross_entropy(model(x), y)) * len(y) for x, y in eval_batches(data, 500)]
    return sum(losses) / len(data)
