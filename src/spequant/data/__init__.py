"""Data sets as uint8 images on a device, or in files decoded as they are read, and batches of them."""

from spequant.data.cifar import load_cifar10, load_cifar100
from spequant.data.configuration import Configuration, data_configuration
from spequant.data.digits import load_digits
from spequant.data.fashion_mnist import load_fashion_mnist
from spequant.data.image_files import Crop, ImageFiles, RandomCrop
from spequant.data.images import Augment, ImageSet, eval_batches, hold_out, train_batches
from spequant.data.mixing import Mixing
from spequant.data.named import load_folder, load_torchvision

__all__ = [
    "Augment",
    "Configuration",
    "Crop",
    "ImageFiles",
    "ImageSet",
    "Mixing",
    "RandomCrop",
    "data_configuration",
    "eval_batches",
    "hold_out",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_folder",
    "load_torchvision",
    "train_batches",
]
