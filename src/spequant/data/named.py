"""Image sets that stay in files: a folder with a folder a class, and torchvision's by name."""

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

from spequant.data.configuration import Configuration
from spequant.data.image_files import Crop, ImageFiles, Source
from spequant.data.images import HOLD_OUT_SEED, ImageSet, hold_out
from spequant.data.settings import ImagesInFiles, fetching, folder_of
from spequant.data.vision import vision
from spequant.names import some_of

TRAIN, TEST = ("train",), ("val", "test")  # folders below a root; of the second the first that is there
SPLITS = {True: ("train", "trainval"), False: ("test", "val")}  # torchvision's names, train or not
UNDIVIDED_TEST = 5  # one image in so many
BASES = {"DatasetFolder", "FakeData", "ImageFolder", "VisionDataset"}  # of torchvision.datasets: no sets to be listed
FEW = 5  # names that a message lists

Pair = tuple[ImageSet, ImageSet]
"""(train, in an order drawn once, so that the first ones are of all classes; test, as the source has it)"""


@dataclass(frozen=True, kw_only=True)
class Folder(ImagesInFiles):
    """Images below root/train/CLASS and root/val/CLASS (or test)."""

    def load(self, network: str) -> Pair:
        root = folder_of(self.root)
        if root is None:
            raise ValueError(
                "data.root is not set; expected the folder that holds train and val: give --data.root DIR (--root DIR "
                "for what is trained)"
            )
        about = self.configuration(network)
        return load_folder(root, about, workers=self.worker_count(), check=self.check_images)


@dataclass(frozen=True, kw_only=True)
class Torchvision(ImagesInFiles):
    """One of torchvision's sets of images with one class each."""

    download: bool = False
    """fetch the set with torchvision where root does not hold it"""
    set: ClassVar[str]
    """torchvision's name of it, e.g. Flowers102"""

    @staticmethod
    @cache
    def named(name: str) -> type["Torchvision"]:
        """The settings of the set that torchvision calls `name`."""
        made = type(f"Torchvision{name}", (Torchvision,), {"set": name, "__doc__": f"torchvision's {name}."})
        return dataclass(frozen=True, kw_only=True)(made)

    def load(self, network: str) -> Pair:
        root = folder_of(self.root)
        options = {"workers": self.worker_count(), "check": self.check_images}
        with fetching(root, self.download):
            return load_torchvision(self.set, root, self.configuration(network), download=self.download, **options)


def load_folder(root: Path | str, about: Configuration, *, workers: int = 0, check: bool = False) -> Pair:
    """Of `root`/train/CLASS/... and `root`/val/CLASS/..., or where there is no val, test: PNG, JPEG and what else
    torchvision takes for an image, at any depth.

    about: size and crop of the evaluation, mean and std. workers: processes that decode.
    check: decode every image now and leave out those that cannot be, with a warning that counts and names them.
    FileNotFoundError: a folder that is missing. ValueError: a class without images, or in one of the two alone.
    """
    train, test = (_folder(Path(root), names) for names in (TRAIN, TEST))
    if train.classes != test.classes:
        alone = [
            f"{one.root} alone has {some_of(sorted(set(one.classes) - set(other.classes)), FEW)}"
            for one, other in ((train, test), (test, train))
            if set(one.classes) - set(other.classes)
        ]
        raise ValueError(f"{' and '.join(alone)}; expected the same class folders in {train.root} and {test.root}")
    first, second = _sets([train, test], about, workers, check)
    return first, second


def load_torchvision(
    name: str, root: Path | None, about: Configuration, *, download: bool = False, workers: int = 0, check: bool = False
) -> Pair:
    """torchvision.datasets' `name`, e.g. Flowers102; the other arguments as of `load_folder`.

    Divided as the class has it (`train=`, or `split=` train or trainval, and test or val). One that it does not divide:
    a fifth, every class at its share and always the same images, is the test set.
    ValueError: no such set, one whose labels are no classes, or files that are missing or damaged.
    """
    sets = vision("torchvision.datasets")
    make = getattr(sets, name, None)
    if not inspect.isclass(make) or name not in {*torchvision_names(), "FakeData"}:
        close = difflib.get_close_matches(name, torchvision_names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(torchvision_names())}"
        raise ValueError(f"data.name is 'torchvision/{name}', which torchvision.datasets does not have; {hint}")
    known = inspect.signature(make).parameters
    given: dict[str, Any] = {"download": download} if "download" in known else {}
    if "root" in known:
        if root is None:
            raise ValueError(
                f"data.root is not set; expected the folder of torchvision's {name}: give --data.root DIR (--root DIR "
                "for what is trained)"
            )
        given["root"] = root
    if "train" in known:
        made = [_made(make, train=part, **given) for part in (True, False)]
    elif "split" in known:
        made = [_split(make, SPLITS[part], given) for part in (True, False)]
    else:
        (whole,) = _sets([_made(make, **given)], about, workers, check)
        rest, held = hold_out(whole, max(1, len(whole) // UNDIVIDED_TEST))
        assert held is not None
        return rest, held
    train, test = _sets(made, about, workers, check)
    return train, test


def torchvision_names() -> list[str]:
    """Of the sets that torchvision has; not all of them are of images with a class each."""
    sets = vision("torchvision.datasets")
    return sorted(name for name in set(sets.__all__) - BASES if inspect.isclass(getattr(sets, name)))


def _folder(root: Path, names: tuple[str, ...]) -> Any:
    """torchvision's ImageFolder of the first of `names` below `root`."""
    sets = vision("torchvision.datasets")
    path = next((root / name for name in names if (root / name).is_dir()), None)
    if path is None:
        found = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else None
        there = (
            "does not exist" if found is None else f"holds the folders {some_of(found, FEW)}" if found else "holds none"
        )
        raise FileNotFoundError(
            f"{root / names[0]} does not exist, {root} {there}; expected train and val (or test) in data.root, with a "
            "folder of images for each class"
        )
    if not any(p.is_dir() for p in path.iterdir()):
        raise ValueError(f"{path} holds no folder; expected one for each class, with its images")
    images = sets.ImageFolder(path, loader=_opened, allow_empty=True)
    counts = np.bincount(images.targets, minlength=len(images.classes))
    empty = [str(path / name) for name, count in zip(images.classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"{some_of(empty, FEW)} without an image; expected one or more "
            f"({', '.join(sets.folder.IMG_EXTENSIONS)}) in each class: remove the folder, or fill it"
        )
    return images


def _opened(path: str) -> Any:
    """pillow's image, decoded: torchvision's own loader makes RGB of it, which clips 16 bits."""
    with vision("PIL.Image").open(path) as image:
        image.load()
        return image


def _made(make: Callable[..., Any], **given: Any) -> Any:
    try:
        return make(**given)
    except TypeError as error:
        raise ValueError(
            f"torchvision's {make.__name__} takes more than root, train or split, and download ({error}); expected a "
            "set of images with a class each: lay it out as folders and use data.name folder"
        ) from error
    except (RuntimeError, OSError, ModuleNotFoundError) as error:
        raise ValueError(
            f"torchvision's {make.__name__} cannot be opened ({error}); set data.root to the folder that holds it, or "
            "fetch it with data.download where there is a network"
        ) from error


def _split(make: Callable[..., Any], names: tuple[str, ...], given: dict[str, Any]) -> Any:
    """With the first of `names` as its split that it takes."""
    refused = []
    for name in names:
        try:
            return _made(make, split=name, **given)
        except ValueError as error:
            if error.__cause__ is not None:  # of `_made`: another fault than the split
                raise
            refused.append(str(error))
    raise ValueError(
        f"torchvision's {make.__name__} has none of the splits {', '.join(names)} ({refused[0]}); lay it out as "
        "folders and use data.name folder"
    )


def labels_of(source: Source) -> Tensor:
    """int64 (n,), without decoding images where the source keeps its labels. ValueError: they are no classes."""
    found = next((getattr(source, name) for name in ("targets", "labels", "_labels") if hasattr(source, name)), None)
    given = found if found is not None else [source[i][1] for i in range(len(source))]
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{type(source).__name__} has labels that are no numbers ({error}); expected a class"
        ) from error
    if labels.shape != (len(source),) or labels.is_floating_point():
        raise ValueError(
            f"{type(source).__name__} has labels of shape {tuple(labels.shape)}, {labels.dtype}; expected "
            f"({len(source)},), the number of a class for each image"
        )
    return labels.long()


def _sets(sources: list[Source], about: Configuration, workers: int, check: bool) -> list[ImageSet]:
    """Of one number of classes; each in an order drawn once, so that its first images are of all classes."""
    crop = Crop(about.size, about.crop_pct, about.interpolation, about.crop_mode)
    labels = [labels_of(source) for source in sources]
    named = getattr(sources[0], "classes", None)
    classes = len(named) if isinstance(named, list | tuple) else 1 + max(int(part.max()) for part in labels)
    sets = [
        _shuffled(ImageSet(ImageFiles(source, crop, workers=workers), part, about.mean, about.std, classes))
        for source, part in zip(sources, labels, strict=True)
    ]
    return [_whole(data) for data in sets] if check else sets


def _shuffled(data: ImageSet) -> ImageSet:
    return data.part(torch.from_numpy(np.random.default_rng(HOLD_OUT_SEED).permutation(len(data))))


def _whole(data: ImageSet) -> ImageSet:
    """Without the images that cannot be decoded; warns with their number and the names of some."""
    assert isinstance(data.images, ImageFiles)
    damaged = data.images.damaged()
    if not damaged:
        return data
    warnings.warn(
        f"{len(damaged)} of {len(data)} images cannot be decoded and are left out: "
        f"{some_of(list(damaged.values()), FEW)}",
        stacklevel=2,
    )
    if len(damaged) == len(data):
        raise ValueError(f"none of {len(data)} images can be decoded, the first: {next(iter(damaged.values()))}")
    rest = np.setdiff1d(np.arange(len(data)), list(damaged))
    return data.part(torch.from_numpy(rest))
