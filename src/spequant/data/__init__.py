"""Data sets as uint8 images on a device, and batches of them."""

from spequant.data.cifar import load_cifar10
from spequant.data.digits import load_digits
from spequant.data.images import Augment, ImageSet, eval_batches, hold_out, train_batches

__all__ = ["Augment", "ImageSet", "eval_batches", "hold_out", "load_cifar10", "load_digits", "train_batches"]
