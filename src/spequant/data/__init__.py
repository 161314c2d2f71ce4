"""Data sets as uint8 images on a device, or in files decoded as they are read, and batches of them; questions and their
windows of tokens."""

from spequant.data.answers import best_answers, exact_match_and_f1
from spequant.data.cifar import load_cifar10, load_cifar100
from spequant.data.configuration import Configuration, data_configuration
from spequant.data.digits import load_digits
from spequant.data.fashion_mnist import load_fashion_mnist
from spequant.data.image_files import Crop, ImageFiles, RandomCrop
from spequant.data.images import Augment, ImageSet, eval_batches, hold_out, train_batches
from spequant.data.mixing import Mixing
from spequant.data.named import load_folder, load_torchvision
from spequant.data.squad import Question, from_rows, load_squad, read_squad
from spequant.data.windows import Windows, check_tokenizer, eval_windows, make_windows, train_windows

__all__ = [
    "Augment",
    "Configuration",
    "Crop",
    "ImageFiles",
    "ImageSet",
    "Mixing",
    "Question",
    "RandomCrop",
    "Windows",
    "best_answers",
    "check_tokenizer",
    "data_configuration",
    "eval_batches",
    "eval_windows",
    "exact_match_and_f1",
    "from_rows",
    "hold_out",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_folder",
    "load_squad",
    "load_torchvision",
    "make_windows",
    "read_squad",
    "train_batches",
    "train_windows",
]
