"""Convolutions that compute with another weight than their own: the two halves apart, for a quantizer between them."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def standardised(weight: Tensor, eps: float, gain: Tensor | None = None) -> Tensor:
    """(weight - mean) / sqrt(var + eps) [* gain], mean and variance over each output channel, the first dimension; gain
    (channels,)."""
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, gain, training=True, momentum=0.0, eps=eps).view_as(weight)


def layered(kind: type, effective_weight: Callable[[Any], Tensor], run_with: Callable[..., Tensor], **own: Any) -> type:
    """A subclass of `kind` whose two halves can be called apart; its instances are `folded` once they hold what
    `effective_weight` made, as those of a packed file do."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return run_with(self, x, effective_weight(self))

    def restore(self: Any) -> None:
        if not self.folded:
            self.__class__ = kind

    own |= {"effective_weight": effective_weight, "run_with": run_with, "forward": forward}
    own |= {"restore": restore, "folded": False}
    own |= {"__module__": __name__, "__doc__": f"{kind.__name__}, its two halves apart. Made by `adapt` alone."}
    return type(f"Layered{kind.__name__}", (kind,), own)
