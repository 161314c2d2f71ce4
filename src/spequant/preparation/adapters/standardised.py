"""timm's convolutions on standardised weights.

    w_hat = (w - mean(w)) / sqrt(var(w) + eps)  [* gain / sqrt(fan-in)],  mean and variance over each output channel

The convolution computes with `w_hat`, so that a quantizer has to quantize `w_hat`.

References:
    Qiao et al. 2019 (arXiv 1903.10520); with gain: Brock et al. 2021 (arXiv 2101.08692).
"""

from typing import Any

import torch.nn.functional as F
from timm.layers.padding import pad_same
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor

from spequant.preparation.adapters.layered import layered, standardised


def effective_weight(self: Any) -> Tensor:
    """Return w_hat, which has the shape of `weight`; or `weight` itself if `folded`, because it then holds w_hat."""
    if self.folded:
        return self.weight
    gain = (self.gain * self.scale).flatten() if hasattr(self, "gain") else None
    return standardised(self.weight, self.eps, gain)


def run_with(self: Any, x: Tensor, weight: Tensor) -> Tensor:
    """Compute the convolution of `x` with `weight` in place of w_hat."""
    if getattr(self, "same_pad", False):
        x = pad_same(x, self.kernel_size, self.stride, self.dilation)
    return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def adapt(module: Any) -> None:
    module.__class__ = LAYERED[type(module)]


LayeredStdConv2d = layered(StdConv2d, effective_weight, run_with)
LayeredStdConv2dSame = layered(StdConv2dSame, effective_weight, run_with)
LayeredScaledStdConv2d = layered(ScaledStdConv2d, effective_weight, run_with)
LayeredScaledStdConv2dSame = layered(ScaledStdConv2dSame, effective_weight, run_with)
LAYERED: dict[type, type] = {
    StdConv2d: LayeredStdConv2d,
    StdConv2dSame: LayeredStdConv2dSame,
    ScaledStdConv2d: LayeredScaledStdConv2d,
    ScaledStdConv2dSame: LayeredScaledStdConv2dSame,
}
