"""EWGS: element-wise gradient scaling, a backward for any uniform quantizer (Lee, Kim and Ham 2021, arXiv 2104.00903).

    g_in = g + d |g| (x_in - x_out)

x_in: the value, clipped, as a share of the range; x_out: the level that it takes. d = 0 is straight-through.
"""

from torch import nn

from spequant.quantizers.base import Quantizer


def set_ewgs(model: nn.Module, scaling: float) -> None:
    """Let every quantizer of `model`, in place, pass gradients with d = `scaling`, 0 or more; .001 is usual.

    ValueError: `model` has no quantizer, or one without this backward (APoT).
    """
    if not scaling >= 0:
        raise ValueError(f"scaling is {scaling!r}; expected a number of 0 or more, e.g. .001")
    quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
    if not quantizers:
        raise ValueError("model has no quantizer; prepare it first")
    for q in quantizers:
        if q.ewgs is None:
            raise ValueError(
                f"{q.name}: {type(q).__name__} has no uniform steps; expected quantizers that have, for EWGS"
            )
        q.ewgs = float(scaling)
