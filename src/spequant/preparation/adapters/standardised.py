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

from spequant.preparation.adapters.layered import layered, standardised


def effective_weight(self: Any) -> Tensor:
    """w_hat, of the shape of `weight`; `weight` itself once `folded`, as a packed file holds w_hat alone."""
    if self.folded:
        return self.weight
    gain = (self.gain * self.scale).flatten() if hasattr(self, "gain") else None
    return standardised(self.weight, self.eps, gain)


def run_with(self: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution with `weight` in place of w_hat."""
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
