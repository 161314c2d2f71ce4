"""Float networks and their weights."""

from spequant.models.resnet_cifar import CifarResNet, ResidualAdd, resnet8, resnet20, resnet32, resnet44, resnet56
from spequant.models.weights import load_weights

__all__ = ["CifarResNet", "ResidualAdd", "load_weights", "resnet8", "resnet20", "resnet32", "resnet44", "resnet56"]
