"""Float networks and their weights; nothing here knows of quantization."""

from spequant.models.answering import (
    TRANSFORMERS,
    answering_from,
    configuration,
    configuration_dict,
    load_tokenizer,
    make_answering,
    transformers_configuration,
)
from spequant.models.mobilenet_v1_cifar import CifarMobileNetV1, mobilenet_v1_025
from spequant.models.mobilenet_v2_cifar import CifarMobileNetV2, mobilenet_v2
from spequant.models.named import check_network, make_network
from spequant.models.residual import ResidualAdd
from spequant.models.resnet_cifar import CifarResNet, resnet8, resnet20, resnet32, resnet44, resnet56
from spequant.models.resnet_imagenet import resnet18, resnet34
from spequant.models.vgg_cifar import CifarVGG, vgg16_bn
from spequant.models.weights import load_weights

__all__ = [
    "TRANSFORMERS",
    "CifarMobileNetV1",
    "CifarMobileNetV2",
    "CifarResNet",
    "CifarVGG",
    "ResidualAdd",
    "answering_from",
    "check_network",
    "configuration",
    "configuration_dict",
    "load_tokenizer",
    "load_weights",
    "make_answering",
    "make_network",
    "mobilenet_v1_025",
    "mobilenet_v2",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet56",
    "transformers_configuration",
    "vgg16_bn",
]
