"""Convolutions that compute with a function of their weight, split in two so that a quantizer fits in between."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def standardised(weight: Tensor, eps: float, gain: Tensor | None = None) -> Tensor:
    """Return (weight - mean) / sqrt(var + eps) [* gain], with mean and variance over each output channel.

    Args:
        weight: (output channels, ...).
        eps: Added to the variance.
        gain: (output channels,), or None for 1.
    """
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, gain, training=True, momentum=0.0, eps=eps).view_as(weight)


def layered(
    kind: type, effective_weight: Callable[[Any], Tensor], run_with: Callable[..., Tensor], **attributes: Any
) -> type:
    """Make a subclass of `kind` whose forward is two methods, `effective_weight` and `run_with`.

    Its instances have an attribute `folded`, which a packed file sets when it loads what `effective_weight` returned as
    their weight.

    Args:
        kind: The class of the convolution.
        effective_weight: module -> the weight that it computes with.
        run_with: (module, input, weight) -> output.
        attributes: Further attributes of the subclass.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        return run_with(self, x, effective_weight(self))

    def restore(self: Any) -> None:
        if not self.folded:
            self.__class__ = kind

    attributes |= {"effective_weight": effective_weight, "run_with": run_with, "forward": forward}
    attributes |= {"restore": restore, "folded": False}
    attributes |= {"__module__": __name__, "__doc__": f"{kind.__name__} as two methods. Only `adapt` makes one."}
    return type(f"Layered{kind.__name__}", (kind,), attributes)
