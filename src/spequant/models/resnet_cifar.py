"""ResNets for small images: He et al. 2016 (arXiv 1512.03385), section 4.2, with option-A shortcuts.

This file only holds float networks. The parameters have the names of the published float weights (repository
akamaster/pytorch_resnet_cifar10).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spequant.models.residual import ResidualAdd


class OptionA(nn.Module):
    """The shortcut without parameters: every `stride`-th pixel, and `pad` channels of zeros before and after.

    Args:
        stride: step between pixels, in both directions.
        pad: channels to add on each side.
    """

    def __init__(self, stride: int, pad: int):
        super().__init__()
        self.stride, self.pad = stride, pad

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out smaller narrower"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; `inputs` and `outputs` are channels, `stride` is the first one's."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else OptionA(stride, (outputs - inputs) // 2)
        self.add = ResidualAdd()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.add(branch, self.shortcut(x)))


class CifarResNet(nn.Module):
    """Stem, three stages at full, half and quarter resolution, global average pooling, a linear layer.

    Args:
        blocks: blocks per stage; the network has 6 `blocks` + 2 layers.
        classes: number of logits.
        in_channels: channels of the images.
        widths: channels of the three stages.
    """

    def __init__(
        self, blocks: int, *, classes: int = 10, in_channels: int = 3, widths: tuple[int, int, int] = (16, 32, 64)
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], blocks, 1)
        self.layer2 = self._stage(widths[0], widths[1], blocks, 2)
        self.layer3 = self._stage(widths[1], widths[2], blocks, 2)
        self.linear = nn.Linear(widths[2], classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(m.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet8(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet-8, one block per stage: 75,002 parameters for 10 classes and one channel."""
    return CifarResNet(1, classes=classes, in_channels=in_channels)


def resnet20(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet-20: 269,722 parameters for 10 classes."""
    return CifarResNet(3, classes=classes, in_channels=in_channels)


def resnet32(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet-32: 464,154 parameters for 10 classes."""
    return CifarResNet(5, classes=classes, in_channels=in_channels)


def resnet44(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet-44: 658,586 parameters for 10 classes."""
    return CifarResNet(7, classes=classes, in_channels=in_channels)


def resnet56(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Return ResNet-56: 853,018 parameters for 10 classes."""
    return CifarResNet(9, classes=classes, in_channels=in_channels)
