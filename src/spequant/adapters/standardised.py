"""timm's convolutions on standardised weights: Qiao et al. 2019 (arXiv 1903.10520), scaled: Brock et al. 2021 (arXiv
2101.08692).

    w_hat = (w - mean(w)) / sqrt(var(w) + eps)  [* gain / sqrt(fan-in)],  mean and variance over each output channel

What is computed with is `w_hat`, so that is what a quantizer has to be given.
"""

from typing import Any

import torch.nn.functional as F
from timm.layers.padding import pad_same
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor


def effective_weight(self: Any) -> Tensor:
    """w_hat, of the shape of `weight`; `weight` itself once `folded`, as a packed file holds w_hat alone."""
    if self.folded:
        return self.weight
    gain = (self.gain * self.scale).flatten() if hasattr(self, "gain") else None
    flat = self.weight.reshape(1, self.out_channels, -1)
    return F.batch_norm(flat, None, None, gain, training=True, momentum=0.0, eps=self.eps).view_as(self.weight)


def run_with(self: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution with `weight` in place of w_hat."""
    if getattr(self, "same_pad", False):
        x = pad_same(x, self.kernel_size, self.stride, self.dilation)
    return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def adapt(module: Any) -> None:
    module.__class__ = LAYERED[type(module)]


def _layered(kind: type) -> type:
    """A subclass of `kind` whose two halves can be called apart."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return run_with(self, x, effective_weight(self))

    def restore(self: Any) -> None:
        if not self.folded:
            self.__class__ = kind

    own: dict[str, Any] = {"effective_weight": effective_weight, "run_with": run_with, "forward": forward}
    own |= {"restore": restore, "folded": False}
    own |= {"__module__": __name__, "__doc__": f"{kind.__name__}, its two halves apart. Made by `adapt` alone."}
    return type(f"Layered{kind.__name__}", (kind,), own)


LayeredStdConv2d = _layered(StdConv2d)
LayeredStdConv2dSame = _layered(StdConv2dSame)
LayeredScaledStdConv2d = _layered(ScaledStdConv2d)
LayeredScaledStdConv2dSame = _layered(ScaledStdConv2dSame)
LAYERED: dict[type, type] = {
    StdConv2d: LayeredStdConv2d,
    StdConv2dSame: LayeredStdConv2dSame,
    ScaledStdConv2d: LayeredScaledStdConv2d,
    ScaledStdConv2dSame: LayeredScaledStdConv2dSame,
}
