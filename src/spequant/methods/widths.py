"""Passes of one network at several activation widths, for methods that learn at all of them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spequant.calibration.batch_norm import batch_norm_untracked
from spequant.layers import act_quantizers
from spequant.methods.tasks import Task
from spequant.policies import LowBit, precision
from spequant.processes import unwrapped


def fewest_bits(model: nn.Module) -> int:
    """Of its activations: the width that `at_widths` changes. ValueError: there are none."""
    widths = [q.bits for q in act_quantizers(model).values() if q.bits is not None]
    if not widths:
        raise ValueError("model has no activation quantizer to switch: prepare it with act=, e.g. PACT(2)")
    return min(widths)


def at_widths(model: nn.Module, widths: Sequence[int], task: Task, batch: Any) -> list[Tensor]:
    """The logits of `model` with its low-bit activations at each of `widths`, in its graph; running statistics of batch
    norm are left to the pass at home."""
    plain = unwrapped(model)
    logits = []
    for width in widths:
        with batch_norm_untracked(plain), precision(plain, LowBit(width)):
            logits.append(task.logits(plain, batch))
    return logits
