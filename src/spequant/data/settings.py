"""Base classes of the settings of data sets. Each data set has its settings in its own file."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spequant.data.configuration import Configuration, data_configuration
from spequant.data.image_files import RandomCrop
from spequant.data.images import Augment, ImageSet, hold_out
from spequant.data.mixing import Mixing
from spequant.extras import needs
from spequant.files import make_folder
from spequant.processes import world

FOLDER_VARIABLE = "SPEQUANT_DATA"
"""Environment variable with the folder of the data, for recipes that set no `data.root`."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Base of the settings of any data set: how much of it is for training, and how much is held out."""

    images: int | None = None
    """number of images, or questions, to train on: the first ones; the rest can be held out; None: all. Images in
    files and questions are shuffled before, always in the same order"""
    held_out: int = 5000
    """training images, or questions, that are held out to make choices with; accuracy on them is measured before,
    during and after training; 0: none"""

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise ValueError(f"data.images is {self.images!r}; expected 1 or more, or None for all")
        if self.held_out < 0:
            raise ValueError(f"data.held_out is {self.held_out!r}; expected 0 or more images")


@dataclass(frozen=True, kw_only=True)
class ImageSettings(DataSettings, ABC):
    """Base of the settings of images with one class each."""

    mixup: float = 0.0
    """alpha of mixup in training, e.g. .2; 0: off. Each process mixes the images of its part of a batch"""
    cutmix: float = 0.0
    """alpha of CutMix in training, e.g. 1; 0: off. With mixup, each batch uses one of the two"""

    def __post_init__(self) -> None:
        super().__post_init__()
        Mixing(self.mixup, self.cutmix)

    @abstractmethod
    def load(self, network: str) -> tuple[ImageSet, ImageSet]:
        """Return the images (train, test).

        Args:
            network: Name of the network in the recipe. Images in files are read with its size, crop, mean and
                deviation, unless the settings have others.
        """

    def augmentation(self, train: ImageSet) -> Augment | RandomCrop | None:
        """Return the augmentation of the training images, or None."""
        return None

    def parts(self, network: str, device: torch.device) -> tuple[ImageSet, ImageSet | None, ImageSet]:
        """Load the images and split them.

        Args:
            network: As in `load`.
            device: Device of the images; images in files are put there when they are decoded.

        Returns:
            (train, held out, test); held out is None if `held_out` is 0.

        Raises:
            ValueError: The set has fewer images than `images` and `held_out` ask for.
        """
        train, test = self.load(network)
        if self.images is None:
            rest, held_out = hold_out(train, self.held_out)
        else:
            rest, held_out = self._first(train, self.images)
        return rest.to(device), held_out.to(device) if held_out is not None else None, test.to(device)

    def _first(self, train: ImageSet, count: int) -> tuple[ImageSet, ImageSet | None]:
        if count > len(train):
            raise ValueError(f"data.images is {count}; expected 1 to {len(train)}")
        if count + self.held_out > len(train):
            raise ValueError(
                f"data.images is {count} and data.held_out {self.held_out}; expected at most {len(train)} together, "
                "the number of training images"
            )
        first, rest = train.part(slice(0, count)), train.part(slice(count, None))
        if not self.held_out:
            return first, None
        return first, rest if self.held_out == len(rest) else hold_out(rest, self.held_out)[1]


@dataclass(frozen=True, kw_only=True)
class ImagesInMemory(ImageSettings):
    """Base of the settings of small images, all of which are kept in memory."""

    augment: bool = True
    """augment in training: zero padding by 4 pixels, a random crop of the old size, a random flip"""

    def augmentation(self, train: ImageSet) -> Augment | RandomCrop | None:
        return Augment() if self.augment else None


@dataclass(frozen=True, kw_only=True)
class ImagesOnDisk(ImagesInMemory):
    """Base of the settings of small images that are read from a folder into memory."""

    root: Path | None = None
    """folder that contains the set; None: the folder in the environment variable SPEQUANT_DATA"""
    download: bool = False
    """fetch the set with torchvision if root does not contain it"""


@dataclass(frozen=True, kw_only=True)
class ImagesInFiles(ImageSettings):
    """Base of the settings of images that stay in files and are decoded when they are read."""

    root: Path | None = None
    """folder of the images; None: the folder in the environment variable SPEQUANT_DATA"""
    augment: bool = True
    """augment in training: a random part of the image, scaled to the size, and a random flip"""
    crop_scale: float = 0.08
    """least share of an image's area in that random part, above 0, at most 1"""
    color_jitter: float | None = None
    """largest random change of brightness, contrast and saturation, e.g. .4; None: no change"""
    auto_augment: str | None = None
    """more augmentation in timm's notation, e.g. rand-m9-mstd0.5, in place of color_jitter; None: off"""
    size: int | None = None
    """side of the images that the network reads, in pixels; None: the size that it was trained with, else 224"""
    crop_pct: float | None = None
    """share of the shorter side in the center crop of evaluation; None: as the network was trained, else .875"""
    interpolation: str | None = None
    """bilinear, bicubic, nearest, box, hamming or lanczos; None: as the network was trained, else bilinear"""
    check_images: bool = False
    """decode every image at the start, and leave out damaged ones with a warning that names them; without this
    option, a damaged image ends the run with an error that names it"""
    workers: int | None = None
    """processes that decode and augment, per training process; 0: the training process itself; None: the number of
    CPUs less one, divided among the training processes, at most 8"""

    def __post_init__(self) -> None:
        super().__post_init__()
        RandomCrop(self.crop_scale, self.color_jitter, self.auto_augment)
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"data.workers is {self.workers!r}; expected 0 or more processes, or None")
        for name, reason in self._ignored():
            value, default = getattr(self, name), getattr(ImagesInFiles, name)
            if value != default:
                raise ValueError(f"data.{name} is {value!r}, which has no effect: {reason}; expected {default!r}")

    def _ignored(self) -> list[tuple[str, str]]:
        """Return (name, reason) of the fields that have no effect."""
        if not self.augment:
            return [(name, "data.augment is False") for name in ("crop_scale", "color_jitter", "auto_augment")]
        if self.auto_augment and "3a" not in self.auto_augment:  # with 3a, timm uses both
            return [("color_jitter", "data.auto_augment stands in for it")]
        return []

    def augmentation(self, train: ImageSet) -> Augment | RandomCrop | None:
        return RandomCrop(self.crop_scale, self.color_jitter, self.auto_augment, train.mean) if self.augment else None

    def configuration(self, network: str) -> Configuration:
        """Return size, crop, mean and deviation: these settings, and for those that are None the network's.

        Args:
            network: Name of the network in the recipe.
        """
        fields = {"size": self.size, "crop_pct": self.crop_pct, "interpolation": self.interpolation}
        return replace(data_configuration(network), **{name: v for name, v in fields.items() if v is not None})

    def worker_count(self) -> int:
        """Return the number of processes that decode for this training process."""
        if self.workers is not None:
            return self.workers
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, (cpus - 1) // world())


def data_folder(root: Path | None) -> Path | None:
    """Return `root`, or the folder in the environment variable SPEQUANT_DATA, or None."""
    return root or (Path(os.environ[FOLDER_VARIABLE]) if os.environ.get(FOLDER_VARIABLE) else None)


def required_folder(title: str, root: Path | None) -> Path:
    """Return `folder_of(root)`.

    Args:
        title: Name of the data set, for the error.
        root: Folder in the settings.

    Raises:
        ValueError: There is no folder.
    """
    folder = data_folder(root)
    if folder is None:
        raise ValueError(
            f"data.root is not set; expected the folder of {title}: give --data.root DIR (--root DIR for what is "
            f"trained) or set {FOLDER_VARIABLE} (--data.download fetches the set into it where there is a network)"
        )
    return folder


@contextmanager
def fetching(root: Path | None, download: bool) -> Iterator[None]:
    """Keep other runs from downloading into `root` inside the context, if `download` is True.

    A folder that is not writable is not locked: nothing can be downloaded into it.
    """
    if root is None or not download:
        yield
        return
    make_folder(root)
    lock = needs("filelock", "train").FileLock(root / ".download.lock")
    with lock if os.access(root, os.W_OK) else nullcontext():
        yield
