"""Functions of tensors, fp32: arithmetic of grids with its gradients (`grids.py`), one node each when compiled."""

from spequant.functional.grids import (
    LEAST_END,
    all_reduce,
    dequantize,
    fake_quantize,
    nearest_power,
    on_power_of_two,
    positive,
    power_above,
    quantize,
    reduced,
    scale_gradient,
    without_autocast,
    zero_point,
)

__all__ = [
    "LEAST_END",
    "all_reduce",
    "dequantize",
    "fake_quantize",
    "nearest_power",
    "on_power_of_two",
    "positive",
    "power_above",
    "quantize",
    "reduced",
    "scale_gradient",
    "without_autocast",
    "zero_point",
]
