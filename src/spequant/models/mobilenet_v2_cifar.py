"""MobileNetV2 for small images: Sandler et al. 2018 (arXiv 1801.04381), table 2, with two strides changed.

The stem and the stage of width 24 have stride 1 in place of 2, so that 32 x 32 images become 4 x 4 feature maps. This
file only holds float networks. The blocks of torchvision and timm compute the same, but their residual additions are
not modules, as they have to be for quantization.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spequant.models.mobilenet_v1_cifar import start
from spequant.models.residual import ResidualAdd

STEM, HEAD = 32, 1280
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, width, blocks, stride of the first block) of each stage."""


class InvertedResidual(nn.Module):
    """1 x 1 expansion, 3 x 3 depthwise convolution and 1 x 1 projection to a linear bottleneck, plus the input.

    The input is added only where neither size nor width change. Activations are clipped at 6. A quantizer of the next
    layer's input that clips below 6 (PACT, after calibration at few bits) supersedes that clip. PACT's `a` cannot stay
    above 6, because no input reaches it there, so that only its penalty acts. The bottleneck, which is the input of the
    next expansion, is not clipped and has both signs.

    Args:
        inputs, outputs: channels.
        expansion: factor from `inputs` to the channels of the depthwise convolution.
        stride: of the depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        if expansion > 1:
            self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(hidden)
        else:
            self.expand, self.bn1 = None, None
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.add = ResidualAdd() if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        branch = x
        if self.expand is not None and self.bn1 is not None:
            branch = F.relu6(self.bn1(self.expand(branch)))
        branch = F.relu6(self.bn2(self.depthwise(branch)))
        branch = self.bn3(self.project(branch))
        return branch if self.add is None else self.add(branch, x)


class CifarMobileNetV2(nn.Module):
    """Stem, 17 inverted residual blocks in seven stages, a 1 x 1 convolution, global average pooling, a linear layer.

    Args:
        classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, *, classes: int = 10, in_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        blocks, width = [], STEM
        for expansion, outputs, count, stride in STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(width, outputs, expansion, stride if i == 0 else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(width, HEAD, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD)
        self.linear = nn.Linear(HEAD, classes)
        start(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = F.relu6(self.bn1(self.conv1(x)))
        x = F.relu6(self.bn2(self.conv2(self.blocks(x))))
        return self.linear(x.mean((2, 3)))


def mobilenet_v2(classes: int = 10, in_channels: int = 3) -> CifarMobileNetV2:
    """Return MobileNetV2 for small images: 2,236,682 parameters for 10 classes, 2,351,972 for 100."""
    return CifarMobileNetV2(classes=classes, in_channels=in_channels)
