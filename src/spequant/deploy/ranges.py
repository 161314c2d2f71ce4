"""Ranges of activation quantizers, moved a little before a network is measured, so that its exports are fast and agree:
one rounding where two quantizers read a tensor (`alignment.py`), nothing near a tie (`ties.py`)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from spequant.deploy.alignment import SAME, steps_in
from spequant.deploy.grids import Grid, act_grid, set_step
from spequant.deploy.ties import MOST, keep_off_ties
from spequant.deploy.trace import trace
from spequant.functional import without_autocast
from spequant.quantizers import Quantizer


@without_autocast
@torch.no_grad()
def align_ranges(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Let one rounding do for two quantizers that read a tensor, and nothing made of codes lie near a tie, in place.

    In a residual network the next layer reads a sum on few codes, the next addition on many. Where a step of the first
    is an odd number of steps of the second, rounding to the second does not change the first. So the range of the
    quantizer with the smaller step is changed to the nearest one of which that is true, by at most 1/8; where that
    is not enough, both stay, and an export rounds twice.

    Where two codes add up to nearly the middle between two codes of the sum, the last bits of fp32 decide, and engines
    answer differently; so it is with products and means. The ranges around these are then changed, by a thousandth or
    so, until no codes do (`ties.py`).

    Call it before the accuracy is measured and before `quantize_biases`. A second call changes nothing.

    Args:
        model: a prepared and calibrated network; only ranges of activation quantizers change.
        example: an input, batch first; only its shape counts.

    Returns:
        {name of a quantizer: new range / old range} of those that were changed.

    Raises:
        RuntimeError: not calibrated.
        ValueError: the network cannot be traced, as for `lower`.
    """
    moved = {}
    for quantizers in _read_together(model, example):
        coarse = act_grid(quantizers[0])
        for q in quantizers[1:]:
            if (factor := _aligned(q, coarse)) is not None:
                moved[q.name] = factor
    for name, factor in keep_off_ties(model, example).items():
        moved[name] = factor * moved.get(name, 1.0)
    return moved


def _read_together(model: nn.Module, example: Tensor) -> Iterator[list[Quantizer]]:
    """Quantizers that read the same tensor and no other, the one with the largest step first."""
    readers: dict[object, dict[Quantizer, None]] = {}
    for step in trace(model, example).steps:
        for source, quantizer in step.kind.reads(step):
            readers.setdefault(source, {})[quantizer] = None
    everywhere = [q for group in readers.values() for q in group if _is_grid(q)]
    for group in readers.values():
        once = [q for q in group if everywhere.count(q) == 1]
        yield from [sorted(once, key=lambda q: -act_grid(q).step)] if len(once) > 1 else []


def _is_grid(quantizer: Quantizer) -> bool:
    try:
        act_grid(quantizer)
    except ValueError:
        return False
    return True


def _aligned(quantizer: Quantizer, coarse: Grid) -> float | None:
    """Change the range of `quantizer` so that `coarse` follows from its codes; by how much. None: it stays."""
    fine = act_grid(quantizer)
    count = max(1, 2 * round((coarse.step / fine.step - 1) / 2) + 1)
    factor = coarse.step / fine.step / count
    agrees = steps_in(coarse, replace(fine, step=coarse.step / count)) is not None
    return factor if SAME < abs(factor - 1) <= MOST and agrees and set_step(quantizer, fine.step * factor) else None
