"""A warning about pruned weights: exact zeros that a grid without a level at zero would change."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from spequant.names import some_of
from spequant.quantizers.base import Quantizer

PRUNED_SHARE = 0.01
"""Share of zeros in a weight up to which there is no warning."""


def tell_lost_zeros(weights: Iterable[tuple[Quantizer | None, Tensor]]) -> None:
    """Warn of weights with more than `PRUNED_SHARE` exact zeros whose grid has no level at zero.

    The UserWarning names the layers and points at the line that called `prepare`, two calls up. Ranges that are all
    zero, and padding rows, stay zero and do not count.

    Args:
        weights: pairs of a weight's quantizer, or None, and the weight.
    """
    layers: dict[str, str] = {}
    for q, weight in weights:
        if q is not None and q.bits is not None and q.leaves_zero_out() and not weight.is_meta:
            with torch.no_grad():
                share = float(((weight == 0) & q.nonzero(weight)).float().mean())
            if share > PRUNED_SHARE:
                layers[q.name] = f"{q.name} ({share:.0%}, {type(q).__name__} at {q.bits} bits)"
    if layers:
        warnings.warn(
            f"weights that are exactly zero, as pruning leaves them, would come back in {some_of([*layers.values()])}: "
            "these grids have no level at zero. Choose one that has, LeastSquares, LSQ or MinMax at 2 bits and more, "
            "SAWB at 5 and more: by weight=, or of single layers by overrides="
            f"{{{next(iter(layers))!r}: (LeastSquares(2), bits of the input)}}",
            stacklevel=4,
        )
