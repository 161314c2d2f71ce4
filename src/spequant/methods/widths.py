"""Passes of one network at several activation widths, for methods that train at all of them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spequant.calibration.batch_norm import batch_norm_untracked
from spequant.layers import act_quantizers
from spequant.methods.tasks import Task
from spequant.policies import LowBit, precision
from spequant.processes import unwrapped


def fewest_bits(model: nn.Module) -> int:
    """Return the fewest bits among the activation quantizers of `model`, which is the width that `at_widths` changes.

    Raises:
        ValueError: `model` has no activation quantizer with bits.
    """
    widths = [q.bits for q in act_quantizers(model).values() if q.bits is not None]
    if not widths:
        raise ValueError("model has no activation quantizer to switch: prepare it with act=, e.g. PACT(2)")
    return min(widths)


def at_widths(model: nn.Module, widths: Sequence[int], task: Task, batch: Any) -> list[Tensor]:
    """Return the logits, with gradient, of `model` at each of `widths`.

    The running statistics of batch norm do not change: only the pass at the home width updates them.

    Args:
        model: The prepared network; it may be compiled or distributed.
        widths: Bits for the activations that have the fewest bits.
        task: Makes logits.
        batch: A batch in the form that `task` reads.
    """
    network = unwrapped(model)
    logits = []
    for width in widths:
        with batch_norm_untracked(network), precision(network, LowBit(width)):
            logits.append(task.logits(network, batch))
    return logits
