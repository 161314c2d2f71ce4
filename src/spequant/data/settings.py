"""What a recipe says of its data. Each data set defines its settings in its own file, on one of the bases here."""

import os
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
"""Environment variable: the folder of the data where a recipe names none."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Of any data set: how much of it is trained on, and what is kept apart."""

    images: int | None = None
    """train only on the first so many images, or questions, and hold out from those after them; None: all. Files and
    questions: the first of an order drawn once"""
    held_out: int = 5000
    """training images, or questions, kept apart for choices, measured before, during and after training; 0: none"""

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise ValueError(f"data.images is {self.images!r}; expected 1 or more, or None for all")
        if self.held_out < 0:
            raise ValueError(f"data.held_out is {self.held_out!r}; expected 0 or more images")


@dataclass(frozen=True, kw_only=True)
class ImageSettings(DataSettings):
    """Of images that have one class each."""

    mixup: float = 0.0
    """alpha of mixup in training, e.g. .2; 0: none. Pairs are made within a process's part of a batch"""
    cutmix: float = 0.0
    """alpha of CutMix, e.g. 1; 0: none. With mixup, each batch takes one of the two"""

    def __post_init__(self) -> None:
        super().__post_init__()
        Mixing(self.mixup, self.cutmix)

    def load(self, network: str) -> tuple[ImageSet, ImageSet]:
        """(train, test). network: name of the network, whose own size, crop, mean and deviation images in files are
        read with where the settings leave them open."""
        raise NotImplementedError(f"{type(self).__qualname__} has no load")

    def augmentation(self, train: ImageSet) -> Augment | RandomCrop | None:
        """Of the training images."""
        return None

    def parts(self, network: str, device: torch.device) -> tuple[ImageSet, ImageSet | None, ImageSet]:
        """(train, held out or None, test) on `device`; of images in files, what is decoded of them. ValueError: more
        images are asked for than there are."""
        train, test = self.load(network)
        if self.images is None:
            rest, held = hold_out(train, self.held_out)
        else:
            rest, held = self._first(train, self.images)
        return rest.to(device), held.to(device) if held is not None else None, test.to(device)

    def _first(self, train: ImageSet, count: int) -> tuple[ImageSet, ImageSet | None]:
        if count > len(train):
            raise ValueError(f"data.images is {count}; expected 1 to {len(train)}")
        if count + self.held_out > len(train):
            raise ValueError(
                f"data.images is {count} and data.held_out {self.held_out}; expected at most {len(train)} together, "
                "the training images that there are"
            )
        rest, behind = train.part(slice(0, count)), train.part(slice(count, None))
        if not self.held_out:
            return rest, None
        return rest, behind if self.held_out == len(behind) else hold_out(behind, self.held_out)[1]


@dataclass(frozen=True, kw_only=True)
class ImagesInMemory(ImageSettings):
    """Of small images, which are held whole."""

    augment: bool = True
    """in training: zero padding by 4 pixels, a random crop of the old size, a random flip"""

    def augmentation(self, train: ImageSet) -> Augment | RandomCrop | None:
        return Augment() if self.augment else None


@dataclass(frozen=True, kw_only=True)
class ImagesOnDisk(ImagesInMemory):
    """Of small images that are read from a folder."""

    root: Path | None = None
    """folder that holds the set; None: the environment's SPEQUANT_DATA"""
    download: bool = False
    """fetch the set with torchvision where root does not hold it"""


@dataclass(frozen=True, kw_only=True)
class ImagesInFiles(ImageSettings):
    """Of images that stay in files and are decoded as they are read."""

    root: Path | None = None
    """folder of the images; None: the environment's SPEQUANT_DATA"""
    augment: bool = True
    """in training: a random part of the image scaled to the size, and a random flip"""
    crop_scale: float = 0.08
    """least share of an image's area in that random part"""
    color_jitter: float | None = None
    """largest random change of brightness, contrast and saturation, e.g. .4; None: none"""
    auto_augment: str | None = None
    """timm's notation, e.g. rand-m9-mstd0.5, in place of color_jitter; None: none"""
    size: int | None = None
    """side of the images that the network sees, in pixels; None: the network's own, else 224"""
    crop_pct: float | None = None
    """in evaluation, share of the shorter side that the crop of the middle takes; None: the network's own, else .875"""
    interpolation: str | None = None
    """bilinear, bicubic, nearest, box, hamming or lanczos; None: the network's own, else bilinear"""
    check_images: bool = False
    """decode every image before anything else, and leave out those that cannot be, with a warning that names them;
    without it such a file ends the run with its name"""
    workers: int | None = None
    """processes that decode and augment, per process of training; 0: the process itself does; None: one fewer than
    there are CPUs, shared by the processes, 8 at most"""

    def __post_init__(self) -> None:
        super().__post_init__()
        RandomCrop(self.crop_scale, self.color_jitter, self.auto_augment)
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"data.workers is {self.workers!r}; expected 0 or more processes, or None")
        for name, why in self._unread():
            value, default = getattr(self, name), getattr(ImagesInFiles, name)
            if value != default:
                raise ValueError(f"data.{name} is {value!r}, which has no effect: {why}; expected {default!r}")

    def _unread(self) -> list[tuple[str, str]]:
        """(field, why it has no effect)."""
        if not self.augment:
            return [(name, "data.augment is False") for name in ("crop_scale", "color_jitter", "auto_augment")]
        if self.auto_augment and "3a" not in self.auto_augment:  # as in timm
            return [("color_jitter", "data.auto_augment stands in for it")]
        return []

    def augmentation(self, train: ImageSet) -> Augment | RandomCrop | None:
        return RandomCrop(self.crop_scale, self.color_jitter, self.auto_augment, train.mean) if self.augment else None

    def configuration(self, network: str) -> Configuration:
        """Size, crop, mean and deviation: those of the network of that name, where the settings leave them open."""
        fields = {"size": self.size, "crop_pct": self.crop_pct, "interpolation": self.interpolation}
        return replace(data_configuration(network), **{name: v for name, v in fields.items() if v is not None})

    def worker_count(self) -> int:
        """Processes that decode, for this process of training."""
        if self.workers is not None:
            return self.workers
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, (cpus - 1) // world())


def folder_of(root: Path | None) -> Path | None:
    """`root`, or what the environment names."""
    return root or (Path(os.environ[FOLDER_VARIABLE]) if os.environ.get(FOLDER_VARIABLE) else None)


def folder_for(title: str, root: Path | None) -> Path:
    """The same of a set that has to be in a folder. ValueError: none is named."""
    folder = folder_of(root)
    if folder is None:
        raise ValueError(
            f"data.root is not set; expected the folder of {title}: give --data.root DIR (--root DIR for what is "
            f"trained) or set {FOLDER_VARIABLE} (--data.download fetches the set into it where there is a network)"
        )
    return folder


@contextmanager
def fetching(root: Path | None, download: bool) -> Iterator[None]:
    """Inside, no other run downloads into `root`; one that cannot be written to takes no downloads."""
    if root is None or not download:
        yield
        return
    make_folder(root)
    lock = needs("filelock", "train").FileLock(root / ".download.lock")
    with lock if os.access(root, os.W_OK) else nullcontext():
        yield
