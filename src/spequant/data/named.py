"""Image sets that stay in files: a folder with one folder per class, and torchvision's sets by name."""

import difflib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spequant.data.class_names import class_names, class_words
from spequant.data.configuration import Configuration
from spequant.data.image_files import ImageFiles, ImageSource, open_image
from spequant.data.images import HOLD_OUT_SEED, ImageSet, hold_out
from spequant.data.settings import ImagesInFiles, data_folder, fetching
from spequant.data.vision import vision
from spequant.names import some_of

TRAIN_FOLDERS, TEST_FOLDERS = ("train",), ("val", "test")
"""Names of folders below a root; the first that exists is used."""
SPLIT_NAMES = {True: ("train", "trainval"), False: ("test", "val")}
"""{whether it is for training: torchvision's names of the split}; the first that a set accepts is used."""
TEST_DIVISOR = 5
"""A set without a test split gives one image in this many for the test."""
WORDS_FILE = "words.txt"
"""File in a root, as in Tiny ImageNet's, with what its class folders are called in words."""
UNLISTED = {"DatasetFolder", "FakeData", "ImageFolder", "VisionDataset"}
"""Classes of torchvision.datasets that are no data sets."""
NAMES_IN_MESSAGE = 5

Pair = tuple[ImageSet, ImageSet]
"""(train, test), each in a fixed random order, so that its first images are of all classes"""


@dataclass(frozen=True, kw_only=True)
class Folder(ImagesInFiles):
    """Images in the folders root/train/CLASS and root/val/CLASS (or root/test/CLASS)."""

    def load(self, network: str) -> Pair:
        root = data_folder(self.root)
        if root is None:
            raise ValueError(
                "data.root is not set; expected the folder that holds train and val: give --data.root DIR (--root DIR "
                "for what is trained)"
            )
        configuration = self.configuration(network)
        return load_folder(root, configuration, workers=self.worker_count(), check=self.check_images)


@dataclass(frozen=True, kw_only=True)
class Torchvision(ImagesInFiles):
    """One of torchvision's sets of images with one class per image."""

    download: bool = False
    """fetch the set with torchvision if root does not contain it"""
    set: ClassVar[str]
    """torchvision's name of the set, e.g. Flowers102"""

    @staticmethod
    @cache
    def named(name: str) -> type["Torchvision"]:
        """Return the settings class of the set that torchvision calls `name`."""
        settings = type(f"Torchvision{name}", (Torchvision,), {"set": name, "__doc__": f"torchvision's {name}."})
        return dataclass(frozen=True, kw_only=True)(settings)

    def load(self, network: str) -> Pair:
        root = data_folder(self.root)
        options = {"workers": self.worker_count(), "check": self.check_images}
        with fetching(root, self.download):
            return load_torchvision(self.set, root, self.configuration(network), download=self.download, **options)


def load_folder(root: Path | str, about: Configuration, *, workers: int = 0, check: bool = False) -> Pair:
    """Open a folder of images, with one folder per class.

    Args:
        root: Folder with train/CLASS/... and val/CLASS/... (or test/CLASS/...). Images are files at any depth in the
            formats of torchvision's ImageFolder, e.g. PNG and JPEG. Classes are called as their folders, or by the
            words that root/words.txt has for these ("n02793495", tab, "barn").
        about: Size and crop in evaluation, mean and deviation.
        workers: Processes that decode, 0 or more; 0: the calling process.
        check: Whether to decode every image now and leave out damaged ones, with a warning that names them.

    Returns:
        (train, test).

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: A class has no image, or is only in one of the two folders.
    """
    train, test = (_folder(Path(root), names) for names in (TRAIN_FOLDERS, TEST_FOLDERS))
    if train.classes != test.classes:
        differences = [
            f"only {one.root} has {some_of(sorted(set(one.classes) - set(other.classes)), NAMES_IN_MESSAGE)}"
            for one, other in ((train, test), (test, train))
            if set(one.classes) - set(other.classes)
        ]
        raise ValueError(
            f"{' and '.join(differences)}; expected the same class folders in {train.root} and {test.root}"
        )
    names = class_words(train.classes, Path(root) / WORDS_FILE)
    train_set, test_set = _sets([train, test], about, workers, check, names)
    return train_set, test_set


def load_torchvision(
    name: str, root: Path | None, about: Configuration, *, download: bool = False, workers: int = 0, check: bool = False
) -> Pair:
    """Open a set of torchvision.datasets.

    The split is torchvision's (argument `train`, or `split` with train or trainval, and test or val). If the set has no
    split, a fifth of its images is the test set: always the same ones, with the shares of the classes preserved.

    Args:
        name: Name of the class in torchvision.datasets, e.g. Flowers102.
        root: Folder of the set; None only if the class takes no root.
        about, workers, check: As in `load_folder`.
        download: Whether torchvision fetches the set if `root` does not contain it.

    Returns:
        (train, test).

    Raises:
        ValueError: There is no such set, its labels are no classes, or files are missing or damaged.
    """
    sets = vision("torchvision.datasets")
    make = getattr(sets, name, None)
    if not inspect.isclass(make) or name not in {*torchvision_names(), "FakeData"}:
        close = difflib.get_close_matches(name, torchvision_names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(torchvision_names())}"
        raise ValueError(f"data.name is 'torchvision/{name}', which torchvision.datasets does not have; {hint}")
    parameters = inspect.signature(make).parameters
    arguments: dict[str, Any] = {"download": download} if "download" in parameters else {}
    if "root" in parameters:
        if root is None:
            raise ValueError(
                f"data.root is not set; expected the folder of torchvision's {name}: give --data.root DIR (--root DIR "
                "for what is trained)"
            )
        arguments["root"] = root
    if "train" in parameters:
        sources = [_open_set(make, train=is_train, **arguments) for is_train in (True, False)]
    elif "split" in parameters:
        sources = [_open_split(make, SPLIT_NAMES[is_train], arguments) for is_train in (True, False)]
    else:
        (data,) = _sets([_open_set(make, **arguments)], about, workers, check)
        train, test = hold_out(data, max(1, len(data) // TEST_DIVISOR))
        assert test is not None
        return train, test
    train, test = _sets(sources, about, workers, check)
    return train, test


def torchvision_names() -> list[str]:
    """Return the names of torchvision's data sets; not all of them have images with one class each."""
    sets = vision("torchvision.datasets")
    return sorted(name for name in set(sets.__all__) - UNLISTED if inspect.isclass(getattr(sets, name)))


def _folder(root: Path, names: tuple[str, ...]) -> Any:
    """Return torchvision's ImageFolder of the first of the folders `names` that `root` contains."""
    sets = vision("torchvision.datasets")
    path = next((root / name for name in names if (root / name).is_dir()), None)
    if path is None:
        if not root.is_dir():
            state = "does not exist"
        elif folders := sorted(p.name for p in root.iterdir() if p.is_dir()):
            state = f"holds the folders {some_of(folders, NAMES_IN_MESSAGE)}"
        else:
            state = "holds no folder"
        raise FileNotFoundError(
            f"{root / names[0]} does not exist, {root} {state}; expected train and val (or test) in data.root, with "
            "one folder of images per class"
        )
    if not any(p.is_dir() for p in path.iterdir()):
        raise ValueError(f"{path} holds no folder; expected one per class, with its images")
    images = sets.ImageFolder(path, loader=open_image, allow_empty=True)
    counts = np.bincount(images.targets, minlength=len(images.classes))
    empty = [str(path / name) for name, count in zip(images.classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"{some_of(empty, NAMES_IN_MESSAGE)} without an image; expected one or more "
            f"({', '.join(sets.folder.IMG_EXTENSIONS)}) in each class: remove the folder, or fill it"
        )
    return images


def _open_set(make: Callable[..., Any], **arguments: Any) -> Any:
    try:
        return make(**arguments)
    except TypeError as error:
        raise ValueError(
            f"torchvision's {make.__name__} takes more than root, train or split, and download ({error}); expected a "
            "set of images with one class each: arrange the images in folders and use data.name folder"
        ) from error
    except (RuntimeError, OSError, ModuleNotFoundError) as error:
        raise ValueError(
            f"torchvision's {make.__name__} cannot be opened ({error}); set data.root to the folder that holds it, or "
            "fetch it with data.download where there is a network"
        ) from error


def _open_split(make: Callable[..., Any], names: tuple[str, ...], arguments: dict[str, Any]) -> Any:
    """Open the first split of `names` that the set accepts."""
    messages = []
    for name in names:
        try:
            return _open_set(make, split=name, **arguments)
        except ValueError as error:
            if error.__cause__ is not None:  # an error of `_open_set`, which is not about the split
                raise
            messages.append(str(error))
    raise ValueError(
        f"torchvision's {make.__name__} has none of the splits {', '.join(names)} ({messages[0]}); arrange the "
        "images in folders and use data.name folder"
    )


def stored_labels(source: ImageSource) -> Tensor:
    """Return the labels of a set, int64 (n,).

    Args:
        source: A set of (image, label). If it stores its labels as torchvision's sets do, no image is decoded.

    Raises:
        ValueError: The labels are no class numbers.
    """
    stored = next((getattr(source, name) for name in ("targets", "labels", "_labels") if hasattr(source, name)), None)
    values = stored if stored is not None else [source[i][1] for i in range(len(source))]
    try:
        labels = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{type(source).__name__} has labels that are no numbers ({error}); expected class numbers"
        ) from error
    if labels.shape != (len(source),) or labels.is_floating_point():
        raise ValueError(
            f"{type(source).__name__} has labels of shape {tuple(labels.shape)}, {labels.dtype}; expected "
            f"({len(source)},), one class number per image"
        )
    return labels.long()


def _sets(
    sources: list[ImageSource], about: Configuration, workers: int, check: bool, names: tuple[str, ...] | None = None
) -> list[ImageSet]:
    """Return image sets with the same classes, each in a fixed random order; names: None: those of the first source."""
    labels = [stored_labels(source) for source in sources]
    names = class_names(sources[0]) if names is None else names
    classes = len(names) if names is not None else 1 + max(int(part.max()) for part in labels)
    sets = [
        _shuffled(
            ImageSet(ImageFiles(source, about.crop, workers=workers), part, about.mean, about.std, classes, names)
        )
        for source, part in zip(sources, labels, strict=True)
    ]
    return [_without_damaged(data) for data in sets] if check else sets


def _shuffled(data: ImageSet) -> ImageSet:
    return data.part(torch.from_numpy(np.random.default_rng(HOLD_OUT_SEED).permutation(len(data))))


def _without_damaged(data: ImageSet) -> ImageSet:
    """Return `data` without the images that cannot be decoded; warn with their number and some of their names."""
    assert isinstance(data.images, ImageFiles)
    damaged = data.images.damaged()
    if not damaged:
        return data
    warnings.warn(
        f"{len(damaged)} of {len(data)} images cannot be decoded and are left out: "
        f"{some_of(list(damaged.values()), NAMES_IN_MESSAGE)}",
        stacklevel=2,
    )
    if len(damaged) == len(data):
        raise ValueError(f"none of {len(data)} images can be decoded, the first: {next(iter(damaged.values()))}")
    rest = np.setdiff1d(np.arange(len(data)), list(damaged))
    return data.part(torch.from_numpy(rest))
