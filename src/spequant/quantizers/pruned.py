"""A warning of exact zeros, as pruning leaves them, that no level of their grid stands for."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from spequant.names import some_of
from spequant.quantizers.base import Quantizer

FEW = 0.01
"""Share of a weight that may be zero without a word."""


def tell_lost_zeros(weights: Iterable[tuple[Quantizer | None, Tensor]]) -> None:
    """UserWarning, where `prepare` was called, two calls up, that names the layers of `weights` of which more than
    `FEW` is zero and would come back: on a grid without zero. Ranges that are zero throughout, and padding, stay zero.
    """
    lost: dict[str, str] = {}
    for q, weight in weights:
        if q is not None and q.bits is not None and q.leaves_zero_out() and not weight.is_meta:
            with torch.no_grad():
                share = float(((weight == 0) & q.something(weight)).float().mean())
            if share > FEW:
                lost[q.name] = f"{q.name} ({share:.0%}, {type(q).__name__} at {q.bits} bits)"
    if lost:
        warnings.warn(
            f"weights that are exactly zero, as pruning leaves them, would come back in {some_of([*lost.values()])}: "
            "these grids have no level at zero. Choose one that has, LeastSquares, LSQ or MinMax at 2 bits and more, "
            "SAWB at 5 and more: by weight=, or of single layers by overrides="
            f"{{{next(iter(lost))!r}: (LeastSquares(2), bits of the input)}}",
            stacklevel=4,
        )
