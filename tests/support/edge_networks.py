"""Everyday networks of edges, small: those that an integer program has to hold whole."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """A block of MLPerf Tiny's ResNet-8."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.a = conv(inputs, outputs, 3, stride)
        self.b = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)) + self.short(x))


def resnet8() -> nn.Module:
    blocks = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]
    return nn.Sequential(conv(3, 16), *blocks, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))


class DsCnn(nn.Module):
    """Keyword spotting, 49 x 10: padding as Keras has it, and its pool of a part of the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2, bias=False))
        self.norm, self.drop = nn.BatchNorm2d(64), nn.Dropout(0.2)
        self.blocks = nn.Sequential(*(m for _ in range(4) for m in (conv(64, 64, groups=64), conv(64, 64, 1))))
        self.pool, self.head = nn.AvgPool2d((24, 5)), nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.relu(self.norm(self.first(x))))
        x = self.pool(self.blocks(x))
        return self.head(x.view(x.size(0), -1))


def mobilenet_v1() -> nn.Module:
    """Visual wake words, a quarter of the width, 96 x 96."""
    widths = (8, 16, 32, 32, 64, 64, *[128] * 6, 256, 256)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    layers = [conv(3, 8, 3, 2)]
    for (inputs, outputs), stride in zip(pairwise(widths), strides, strict=True):
        layers += [conv(inputs, inputs, 3, stride, inputs), conv(inputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2))


def autoencoder() -> nn.Module:
    """Anomaly detection, 640 - 8 - 640."""
    widths = (640, *[128] * 4, 8, *[128] * 4)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


class UNet(nn.Module):
    """Two levels. up: how sizes are doubled."""

    def __init__(self, transposed: bool):
        super().__init__()
        self.down = nn.ModuleList([conv(3, 8), conv(8, 16)])
        self.deep = conv(16, 32)
        up = (lambda i, o: nn.ConvTranspose2d(i, o, 2, 2)) if transposed else _nearest
        self.ups = nn.ModuleList([up(32, 16), up(16, 8)])
        self.joins, self.head = nn.ModuleList([conv(32, 16), conv(16, 8)]), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            kept.append(block(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.deep(x)
        for up, join, same in zip(self.ups, self.joins, reversed(kept), strict=True):
            x = join(torch.cat([up(x), same], 1))
        return self.head(x)


def _nearest(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inputs, outputs, 3, padding=1))


def espcn() -> nn.Module:
    layers = [nn.Conv2d(1, 32, 5, padding=2), nn.Tanh(), nn.Conv2d(32, 16, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(16, 9, 3, padding=1), nn.PixelShuffle(3))


class Detector(nn.Module):
    """Like SSD on VGG: boxes and classes of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(conv(3, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d(2, ceil_mode=True))
        self.second = nn.Sequential(conv(32, 64), nn.MaxPool2d(2, ceil_mode=True))
        self.boxes = nn.ModuleList([nn.Conv2d(32, 8, 3, padding=1), nn.Conv2d(64, 8, 3, padding=1)])
        self.classes = nn.ModuleList([nn.Conv2d(32, 6, 3, padding=1), nn.Conv2d(64, 6, 3, padding=1)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [y := self.first(x), self.second(y)]
        return {"boxes": self.rows(self.boxes, maps, 4), "classes": self.rows(self.classes, maps, 3)}

    def rows(self, heads: nn.ModuleList, maps: list[Tensor], numbers: int) -> Tensor:
        found = [head(m).permute(0, 2, 3, 1) for head, m in zip(heads, maps, strict=True)]
        return torch.cat([y.reshape(y.shape[0], -1, numbers) for y in found], 1)


def one_dimension() -> nn.Module:
    """Of signals, with pooling and batch norm."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((2, 16), (16, 32), (32, 32)):
        layers += [nn.Conv1d(inputs, outputs, 5, padding=2), nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 5))


def torchvision(name: str, **options: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        return getattr(models, name)(num_classes=10, **options)

    return make


def densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 3, 2), 16, num_classes=10)


def timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from timm import create_model

        return create_model(name, num_classes=10)

    return make


def mobileone() -> nn.Module:
    from timm.utils.model import reparameterize_model

    return reparameterize_model(timm("mobileone_s0")().eval())


def made_up(count: int, shape: tuple[int, ...]) -> Tensor:
    """Samples of this shape that differ as images do: in what is large as well as in what is small, with some noise, in
    256 levels."""
    if len(shape) == 1:
        x = torch.randn(count, 12) @ torch.randn(12, *shape) / 12**0.5
    else:
        channels, *sizes = shape
        mode = "linear" if len(sizes) == 1 else "bilinear"
        layers = [torch.randn(count, channels, *(min(n, size) for size in sizes)) for n in (2, 4, 8)]
        x = sum(F.interpolate(layer, sizes, mode=mode) for layer in layers)
    levels = ((x + torch.randn(count, *shape) / 10) * 40 + 128).round().clamp(0, 255)
    return (levels / 255 - 0.45) / 0.225


@dataclass(frozen=True)
class Edge:
    """make: the float network; shape: of a sample."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 64, 64)


EDGES = {
    "MLPerf Tiny ResNet-8": Edge(resnet8, (3, 32, 32)),
    "MLPerf Tiny DS-CNN": Edge(DsCnn, (1, 49, 10)),
    "MLPerf Tiny MobileNetV1-0.25": Edge(mobilenet_v1, (3, 96, 96)),
    "MLPerf Tiny autoencoder": Edge(autoencoder, (640,)),
    "torchvision/shufflenet_v2_x0_5": Edge(torchvision("shufflenet_v2_x0_5")),
    "torchvision/squeezenet1_1": Edge(torchvision("squeezenet1_1")),
    "torchvision/mobilenet_v3_small": Edge(torchvision("mobilenet_v3_small")),
    "torchvision/DenseNet, small": Edge(densenet),
    "torchvision/googlenet": Edge(torchvision("googlenet", aux_logits=False, init_weights=False)),
    "torchvision/vgg11_bn": Edge(torchvision("vgg11_bn"), (3, 32, 32)),
    "torchvision/alexnet": Edge(torchvision("alexnet")),
    "timm/efficientnet_lite0": Edge(timm("efficientnet_lite0")),
    "timm/mobilenetv4_conv_small": Edge(timm("mobilenetv4_conv_small")),
    "timm/mobileone_s0, reparametrised": Edge(mobileone),
    "timm/ghostnet_050": Edge(timm("ghostnet_050")),
    "timm/mixnet_s": Edge(timm("mixnet_s")),
    "U-Net, transposed": Edge(lambda: UNet(True), (3, 32, 32)),
    "U-Net, nearest": Edge(lambda: UNet(False), (3, 32, 32)),
    "ESPCN": Edge(espcn, (1, 16, 16)),
    "detector like VGG-SSD": Edge(Detector, (3, 32, 32)),
    "CNN of one dimension": Edge(one_dimension, (2, 64)),
}
