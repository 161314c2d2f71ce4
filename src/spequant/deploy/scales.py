"""Layers whose results lie on no middle between two codes, nor near one: engines and PyTorch round them alike.

The code of a sum of products, a whole number n, is the nearest to ratio * (n + bias), ratio = input step * weight scale
/ output step. PyTorch sums in fp32 what engines sum in int32, and engines multiply in different ways: where the result
lies within some last bits of the middle between two codes, they give it different ones, and a deep network passes on
what began with one code. Where the ratio is p / q, q odd, all results are multiples of 1 / q, and 1 / 2q away from any
middle, or more. A batch norm's weight, which the scale is a multiple of, makes it so for each channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from spequant.deploy.alignment import SAME
from spequant.deploy.operations import Weighted
from spequant.deploy.program import Program

PARTS = 1023
"""Of a code, at least, that ratios are multiples of; odd. So they change by a thousandth at most."""


@torch.no_grad()
def keep_layers_off_ties(program: Program) -> bool:
    """Change the weights of batch norms behind the layers of `program`, in place, until each ratio is p / q; biases so
    that what is added to sums stays. Whether any changed: then `program` is out of date.

    A layer without batch norm stays as it is, one of a batch norm without parameters, and one whose codes are finer
    than sums are far apart from each other by a thousandth: there steps between codes lie everywhere.
    """
    layers: dict[int, list[Weighted]] = {}  # one that two quantizers read is there twice
    for op in program.weighted:
        if op.gain is not None and op.bias is not None and op.grid is not None:
            layers.setdefault(id(op.gain), []).append(op)
    return any([_changed(ops) for ops in layers.values()])


def _changed(ops: Sequence[Weighted]) -> bool:
    """Change the batch norm that `ops` share, by the finest of their grids, of which coarser ones may follow."""
    op = min(ops, key=lambda op: op.grid.step if op.grid else 0.0)
    gain, bias = op.gain, op.bias
    assert gain is not None and bias is not None and op.grid is not None
    ratio, offset = (v.view(len(gain), -1)[:, 0] for v in (ratios(op), op.offset))  # alike in all phases
    factor = odd_parts(ratio) / ratio
    factor = factor.where((ratio > 0) & ((factor - 1).abs() > SAME), 1.0)
    gain.copy_(gain.double().cpu() * factor)
    now = bias.double().cpu()
    bias.copy_(now + (offset - now) * (1 - factor))
    return bool((factor != 1).any())


def ratios(op: Weighted) -> Tensor:
    """Codes of the result for each unit of a sum, float64 (outputs,), without sign."""
    assert op.grid is not None
    return (op.integers.scale.double() * op.step.double() / op.grid.step).abs()


def odd_parts(ratio: Tensor) -> Tensor:
    """The number p / q nearest to `ratio`, a thousandth away at most, of those with p a power of two from 1 on and q
    odd, from `PARTS` on; q below twice that where p is more than 1, so that each has one form."""
    power = (torch.log2(ratio * PARTS) - 1e-4).ceil().clamp_min(0)  # a last bit more leaves it where it is
    p = torch.exp2(power)
    q = (2 * ((p / ratio - 1) / 2).round() + 1).clamp_min(PARTS)
    return p / q.minimum(torch.where(power > 0, 2.0 * PARTS - 1, torch.inf))
