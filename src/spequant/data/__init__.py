"""Data sets and their batches: images, in memory or in files, and questions about texts as windows of tokens."""

from spequant.data.answers import best_answers, exact_match_and_f1
from spequant.data.cifar import CIFAR10, CIFAR100, load_cifar10, load_cifar100
from spequant.data.configuration import Configuration, configuration_from, data_configuration
from spequant.data.digits import Digits, load_digits
from spequant.data.fashion_mnist import FashionMNIST, load_fashion_mnist
from spequant.data.image_files import Crop, ImageFiles, RandomCrop
from spequant.data.images import Augment, ImageSet, eval_batches, hold_out, train_batches
from spequant.data.mixing import Mixing
from spequant.data.named import Folder, Torchvision, load_folder, load_torchvision
from spequant.data.pictures import list_images, picture_reader
from spequant.data.questions import Question, QuestionSettings
from spequant.data.settings import DataSettings, ImageSettings, ImagesInFiles, ImagesInMemory, ImagesOnDisk
from spequant.data.soft_labels import SoftLabels, make_soft_labels
from spequant.data.squad import Squad, from_rows, load_squad, read_squad
from spequant.data.windows import Windows, check_tokenizer, eval_windows, make_windows, train_windows

by_name: dict[str, type[DataSettings]] = {
    "digits": Digits,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "fashion-mnist": FashionMNIST,
    "folder": Folder,
    "squad": Squad,
}
"""{name of a data set in recipes: its settings}. "torchvision/NAME" stands for `Torchvision.named(NAME)`."""

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Augment",
    "Configuration",
    "Crop",
    "DataSettings",
    "Digits",
    "FashionMNIST",
    "Folder",
    "ImageFiles",
    "ImageSet",
    "ImageSettings",
    "ImagesInFiles",
    "ImagesInMemory",
    "ImagesOnDisk",
    "Mixing",
    "Question",
    "QuestionSettings",
    "RandomCrop",
    "SoftLabels",
    "Squad",
    "Torchvision",
    "Windows",
    "best_answers",
    "by_name",
    "check_tokenizer",
    "configuration_from",
    "data_configuration",
    "eval_batches",
    "eval_windows",
    "exact_match_and_f1",
    "from_rows",
    "hold_out",
    "list_images",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_folder",
    "load_squad",
    "load_torchvision",
    "make_soft_labels",
    "make_windows",
    "picture_reader",
    "read_squad",
    "train_batches",
    "train_windows",
]
