"""VGG16 with batch norm for small images: configuration D of Simonyan and Zisserman 2015 (arXiv 1409.1556).

Batch norm (Ioffe and Szegedy 2015, arXiv 1502.03167) follows each convolution, and there is one linear layer, as is
usual for CIFAR. This file only holds float networks.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(width, convolutions) of each stage; pooling follows each stage."""


class CifarVGG(nn.Module):
    """Five stages of 3 x 3 convolutions, each followed by max pooling, and a linear layer.

    The first four poolings are 2 x 2. The last one is global, over 2 x 2 pixels if the image has 32 x 32, and over one
    if it has 28 x 28.

    Args:
        classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, *, classes: int = 10, in_channels: int = 3):
        super().__init__()
        self.stages = nn.ModuleList()
        for width, convolutions in STAGES:
            stage = nn.Sequential()
            for _ in range(convolutions):
                stage.extend([nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()])
                in_channels = width
            self.stages.append(stage)
        self.linear = nn.Linear(in_channels, classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(m.weight)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        *first, last = self.stages
        for stage in first:
            x = F.max_pool2d(stage(x), 2)
        return self.linear(last(x).amax((2, 3)))


def vgg16_bn(classes: int = 10, in_channels: int = 3) -> CifarVGG:
    """Return VGG16 with batch norm: 13 convolutions without bias, 14,724,042 parameters for 10 classes."""
    return CifarVGG(classes=classes, in_channels=in_channels)
