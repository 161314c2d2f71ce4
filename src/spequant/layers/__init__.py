"""Quantized layers, additions and products: modules that contain the float one and quantize what it reads.

There is no policy here: `preparation` decides which layer gets which quantizer.
"""

from spequant.layers.layer import QuantizedLayer, effective_weight, run_with
from spequant.layers.slots import (
    LEAVES,
    OUTPUT,
    act_quantizers,
    act_slots,
    leave_output,
    quantize_output,
    slots_of,
    weight_bits,
    weight_quantizers,
)
from spequant.layers.wrapper import (
    HOOKS,
    HOOKS_BEFORE,
    QuantizedAdd,
    QuantizedProduct,
    Wrapper,
    inner_module,
    move_hooks,
)

__all__ = [
    "HOOKS",
    "HOOKS_BEFORE",
    "LEAVES",
    "OUTPUT",
    "QuantizedAdd",
    "QuantizedLayer",
    "QuantizedProduct",
    "Wrapper",
    "act_quantizers",
    "act_slots",
    "effective_weight",
    "inner_module",
    "leave_output",
    "move_hooks",
    "quantize_output",
    "run_with",
    "slots_of",
    "weight_bits",
    "weight_quantizers",
]
