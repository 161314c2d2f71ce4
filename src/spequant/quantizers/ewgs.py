"""EWGS: element-wise gradient scaling, a gradient for any uniform quantizer (Lee, Kim and Ham 2021, arXiv 2104.00903).

    g_in = g + d |g| (x_in - x_out)

x_in is the clipped value as a share of the range, x_out its level. d = 0 is the straight-through gradient.
"""

import math

from torch import nn

from spequant.quantizers.base import Quantizer


def set_ewgs(model: nn.Module, scaling: float) -> None:
    """Set d of EWGS in every quantizer of `model`, in place.

    Args:
        model: a prepared network.
        scaling: d, 0 or more; .001 is usual.

    Raises:
        ValueError: `scaling` is negative, or the model has no quantizer, or one without equal steps (APoT).
    """
    if not 0 <= scaling < math.inf:
        raise ValueError(f"scaling is {scaling!r}; expected a finite number of 0 or more, e.g. .001")
    quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
    if not quantizers:
        raise ValueError("model has no quantizer; prepare it first")
    for q in quantizers:
        if q.ewgs is None:
            raise ValueError(
                f"{q.name}: {type(q).__name__} has no uniform steps; expected quantizers that have, for EWGS"
            )
        q.ewgs = float(scaling)
