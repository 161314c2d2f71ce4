"""transformers' `Conv1D` (GPT-2 and others), a linear layer with weight (inputs, outputs), as `nn.Linear`."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D


class LinearConv1D(nn.Linear):
    """A `Conv1D` whose weight has shape (outputs, inputs). Only `adapt` makes one."""

    def restore(self) -> None:
        _transpose(self)
        del self.in_features, self.out_features
        self.__class__ = Conv1D  # type: ignore[assignment]


def adapt(module: Any) -> None:
    _transpose(module)
    module.__class__ = LinearConv1D
    module.out_features, module.in_features = module.weight.shape


def _transpose(module: Any) -> None:
    weight = module.weight
    module.weight = nn.Parameter(weight.detach().t().contiguous(), weight.requires_grad)
