"""torchvision's ResNet-18 and ResNet-34 with marked residual additions: He et al. 2016 (arXiv 1512.03385), table 1.

The parameters have torchvision's names, so that its weights load. This file only holds float networks.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from spequant.extras import needs
from spequant.models.residual import ResidualAdd


class MarkedBlock(nn.Module):
    """torchvision's BasicBlock with the addition as a module; the arguments are those that torchvision's ResNet passes.

    Raises:
        ValueError: groups, width per group or dilation that a basic block does not have.
    """

    expansion = 1

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        if (groups, base_width, dilation) != (1, 64, 1):
            raise ValueError(
                f"groups, base_width, dilation are {groups}, {base_width}, {dilation}; expected 1, 64, 1, "
                "all that a basic block has"
            )
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = norm_layer(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(outputs)
        self.downsample = downsample
        self.add = ResidualAdd()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.add(branch, x if self.downsample is None else self.downsample(x)))


def resnet18(classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Return ResNet-18: 11,689,512 parameters for 1,000 classes. It needs the extra `vision`."""
    return _resnet([2, 2, 2, 2], classes, in_channels)


def resnet34(classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Return ResNet-34: 21,797,672 parameters for 1,000 classes. It needs the extra `vision`."""
    return _resnet([3, 4, 6, 3], classes, in_channels)


def _resnet(blocks: list[int], classes: int, in_channels: int) -> nn.Module:
    network = needs("torchvision.models.resnet", "vision").ResNet(MarkedBlock, blocks, num_classes=classes)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
