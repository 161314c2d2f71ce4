"""Data sets as uint8 images on a device, and batches of them."""

from spequant.data.cifar import load_cifar10, load_cifar100
from spequant.data.digits import load_digits
from spequant.data.fashion_mnist import load_fashion_mnist
from spequant.data.images import Augment, ImageSet, eval_batches, hold_out, train_batches

__all__ = [
    "Augment",
    "ImageSet",
    "eval_batches",
    "hold_out",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "train_batches",
]
