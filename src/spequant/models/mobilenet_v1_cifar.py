"""MobileNetV1 for small images: Howard et al. 2017 (arXiv 1704.04861), table 1, with two strides changed.

The stem and the first layer of 128 channels have stride 1 in place of 2, so that 32 x 32 images become 4 x 4 feature
maps. A quarter of the width is the size of MLPerf Tiny's network for visual wake words. This file only holds float
networks.
"""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
"""Channels of the stem and of the 13 blocks behind it."""
STRIDES = (1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
"""Of the blocks."""


def start(network: nn.Module) -> None:
    """Draw the weights that a MobileNet begins with, in place."""
    for m in network.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out")
        elif isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.01)
            nn.init.zeros_(m.bias)


class Separable(nn.Module):
    """3 x 3 depthwise convolution, then 1 x 1, each with batch norm and ReLU.

    Args:
        inputs, outputs: channels.
        stride: of the depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class CifarMobileNetV1(nn.Module):
    """Stem, 13 separable blocks, global average pooling, a linear layer.

    Args:
        width: share of the paper's channels.
        classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, width: float = 1.0, *, classes: int = 10, in_channels: int = 3):
        super().__init__()
        widths = [round(width * channels) for channels in WIDTHS]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*(Separable(*ends, s) for ends, s in zip(pairwise(widths), STRIDES, strict=True)))
        self.linear = nn.Linear(widths[-1], classes)
        start(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))


def mobilenet_v1_025(classes: int = 10, in_channels: int = 3) -> CifarMobileNetV1:
    """Return MobileNetV1 at a quarter of its width for small images: 215,642 parameters for 10 classes."""
    return CifarMobileNetV1(0.25, classes=classes, in_channels=in_channels)
