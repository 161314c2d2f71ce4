"""Convolutions of transformers on standardised weights (BiT, and the backbones of hybrid ViT and DPT).

    w_hat = (w - mean(w)) / sqrt(var(w) + eps),  mean and variance over each output channel

References:
    Qiao et al. 2019 (arXiv 1903.10520).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from spequant.preparation.adapters.layered import layered, standardised


def effective_weight(self: Any) -> Tensor:
    """Return w_hat, which has the shape of `weight`; or `weight` itself if `folded`, because it then holds w_hat."""
    return self.weight if self.folded else standardised(self.weight, self.eps)


def run_with(self: Any, x: Tensor, weight: Tensor) -> Tensor:
    """Compute the convolution of `x` with `weight` in place of w_hat."""
    x = x if self.pad is None else self.pad(x)
    return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def adapt(module: Any) -> None:
    module.__class__ = LayeredWeightStandardizedConv2d


LayeredWeightStandardizedConv2d = layered(
    WeightStandardizedConv2d, effective_weight, run_with, same_pad=property(lambda self: self.pad is not None)
)
