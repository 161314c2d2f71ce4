"""transformers' convolutions on standardised weights (BiT, and the backbones of hybrid ViT and DPT): Qiao et al. 2019
(arXiv 1903.10520).

    w_hat = (w - mean(w)) / sqrt(var(w) + eps),  mean and variance over each output channel
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from spequant.preparation.adapters.layered import layered, standardised


def effective_weight(self: Any) -> Tensor:
    """w_hat, of the shape of `weight`; `weight` itself once `folded`."""
    return self.weight if self.folded else standardised(self.weight, self.eps)


def run_with(self: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution with `weight` in place of w_hat."""
    x = x if self.pad is None else self.pad(x)
    return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def adapt(module: Any) -> None:
    module.__class__ = LayeredWeightStandardizedConv2d


LayeredWeightStandardizedConv2d = layered(
    WeightStandardizedConv2d, effective_weight, run_with, same_pad=property(lambda self: self.pad is not None)
)
