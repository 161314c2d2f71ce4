"""Images that stay in files and are decoded when they are read, in place of the uint8 tensor of an `ImageSet`.

Random crops depend only on (seed, epoch, position in the epoch), not on the process that decodes the image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spequant.data.vision import seeded, vision

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATH_ATTRIBUTES = ("samples", "_samples", "_image_files", "_images")
"""Attributes in which torchvision's sets store the paths of their files."""
ORIENTATION = 0x0112
"""EXIF's tag for how the camera was held; 1: upright"""

Transform = Callable[[Any], Tensor]
"""pillow's RGB image -> uint8 (3, size, size)"""


class ImageSource(Protocol):
    """Any map-style set of (pillow's image, label), e.g. one of torchvision's."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Crop:
    """The crop in evaluation: the shorter side is scaled to `size` / `share` pixels, and the center is cut out.

    Attributes:
        size: Side of the crop in pixels, 1 or more; a smaller image is enlarged.
        share: Share of the scaled side that the crop takes, above 0, at most 1.
        interpolation: One of `INTERPOLATIONS`.
        mode: timm's: "center"; "squash", which scales both sides to this length; or "border", which scales the longer
            side and fills the rest.

    Raises:
        ValueError: A value is out of range.
    """

    size: int = 224
    share: float = 0.875
    interpolation: str = "bilinear"
    mode: str = "center"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size!r}; expected 1 or more pixels")
        if not 0 < self.share <= 1:
            raise ValueError(f"crop_pct is {self.share!r}; expected above 0 and at most 1")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}")

    def transform(self) -> Transform:
        """Return the function that crops an image."""
        return vision("timm.data").create_transform(
            (3, self.size, self.size),
            crop_pct=self.share * (1 - 1e-9),  # timm rounds the length size / crop_pct down
            crop_mode=self.mode,
            interpolation=self.interpolation,
            normalize=False,
        )


@dataclass(frozen=True)
class RandomCrop:
    """timm's augmentation in training: a random part of the image, scaled to the size, and a random horizontal flip.

    Attributes:
        scale: Least share of the image's area in the random part, above 0, at most 1.
        color_jitter: Largest change of brightness, contrast and saturation, 0 or more, e.g. .4; None: no change.
        auto_augment: timm's notation, e.g. "rand-m9-mstd0.5", which replaces `color_jitter`; None: no operations.
        mean: Mean of the images per channel, with which some operations of `auto_augment` fill.

    Raises:
        ValueError: A value is out of range.
    """

    scale: float = 0.08
    color_jitter: float | None = None
    auto_augment: str | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError(f"crop_scale is {self.scale!r}; expected above 0 and at most 1")
        if self.color_jitter is not None and not 0 <= self.color_jitter < math.inf:
            raise ValueError(f"color_jitter is {self.color_jitter!r}; expected a finite number of 0 or more, or None")

    def transform(self, crop: Crop) -> Transform:
        """Return the function that augments an image and scales it to the size of `crop`.

        Raises:
            ValueError: `auto_augment` is not in timm's notation.
        """
        create = vision("timm.data").create_transform
        try:
            return create(
                (3, crop.size, crop.size),
                is_training=True,
                scale=(self.scale, 1.0),
                color_jitter=self.color_jitter,
                auto_augment=self.auto_augment,
                interpolation=crop.interpolation,
                mean=self.mean,
                normalize=False,
            )
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"auto_augment is {self.auto_augment!r}, which timm does not take ({error!r}); expected its notation, "
                "e.g. rand-m9-mstd0.5, augmix-m3-w3, original, or None"
            ) from error


class ImageFiles:
    """Images that are decoded when they are read: `files[a:b]` or `files[indices]` is uint8 (k, 3, size, size).

    Indexing decodes in the calling process, `read` in `workers` processes. A file that cannot be decoded raises a
    ValueError with its name when it is read.

    Args:
        source: Set of (image, label); images of any size and mode, which are converted to RGB.
        crop: Crop of the images in evaluation.
        workers: Processes that decode in `read`, 0 or more; 0: the calling process.

    Raises:
        ValueError: `workers` is negative.
    """

    def __init__(self, source: ImageSource, crop: Crop, *, workers: int = 0):
        if workers < 0:
            raise ValueError(f"workers is {workers!r}; expected 0 or more processes")
        self.source, self.crop, self.workers = source, crop, workers
        self.indices = np.arange(len(source))
        self.device, self.dtype = torch.device("cpu"), torch.uint8

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self.crop.size, self.crop.size))

    def dim(self) -> int:
        return 4

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        positions = np.arange(len(self))[indices if isinstance(indices, slice) else indices.cpu().numpy()]
        transform = self.crop.transform()
        images = [transform(self.decoded(int(i))) for i in positions]
        return (torch.stack(images) if images else torch.empty((0, *self.shape[1:]), dtype=self.dtype)).to(self.device)

    def to(self, device: torch.device | str) -> "ImageFiles":
        """Return a copy that puts decoded images on `device`."""
        files = copy(self)
        files.device = torch.device(device)
        return files

    def part(self, indices: Tensor | slice) -> "ImageFiles":
        """Return the images at `indices` (int64 or a slice), without decoding."""
        files = copy(self)
        files.indices = self.indices[indices if isinstance(indices, slice) else indices.cpu().numpy()]
        return files

    def name(self, position: int) -> str:
        """Return the path of the image at `position`, or its number and the source if the source has no paths."""
        index = int(self.indices[position])
        for attribute in PATH_ATTRIBUTES:
            paths = getattr(self.source, attribute, None)
            if paths is not None and len(paths) == len(self.source):
                return str(paths[index][0] if isinstance(paths[index], tuple | list) else paths[index])
        return f"image {index} of {type(self.source).__name__}"

    def decoded(self, position: int) -> Any:
        """Return the image at `position` as pillow's RGB image.

        Raises:
            ValueError: The file is damaged or is no image.
        """
        try:
            return rgb(self.source[int(self.indices[position])][0])
        except Exception as error:  # pillow raises many types, depending on the format
            raise ValueError(
                f"{self.name(position)} is no image that can be read ({error!r}); replace it, remove it, or set "
                "data.check_images to leave such files out"
            ) from error

    def read(
        self,
        batches: Sequence[range],
        order: np.ndarray | None = None,
        augment: RandomCrop | None = None,
        seed: tuple[int, ...] = (),
        *,
        by_image: bool = False,
    ) -> Iterator[Tensor]:
        """Decode batches in the worker processes.

        Args:
            batches: Ranges of positions, one per batch.
            order: int64; position i reads image order[i]. None: image i.
            augment: Random crop; None: the crop of evaluation.
            seed: The augmentation at position i depends only on (*seed, i).
            by_image: Whether it depends on (*seed, order[i]) instead, the image's own number.

        Yields:
            uint8 images (k, 3, size, size), one tensor per batch.

        Raises:
            ValueError: A file cannot be decoded.
        """
        loader = DataLoader(
            _Batches(self, batches, order, augment, seed, by_image),
            batch_size=None,
            sampler=range(len(batches)),
            num_workers=min(self.workers, len(batches)),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # the default is the global one, which must not change
        )
        for images in loader:
            if isinstance(images, Exception):
                raise images
            yield images.to(self.device, non_blocking=True)

    def damaged(self) -> dict[int, str]:
        """Decode all images, in `workers` processes; return {position: name} of those that cannot be decoded."""
        checks = DataLoader(
            _Checks(self), batch_size=64, collate_fn=list, num_workers=self.workers, generator=torch.Generator()
        )
        return {position: self.name(position) for batch in checks for position in batch if position is not None}


class _Batches(Dataset[Any]):
    """The batches that a worker decodes. Item k is batch k, or the error that names a damaged file.

    The error is returned so that the main process raises it without the worker's traceback.
    """

    def __init__(
        self,
        files: ImageFiles,
        batches: Sequence[range],
        order: np.ndarray | None,
        augment: RandomCrop | None,
        seed: tuple[int, ...],
        by_image: bool,
    ):
        self.files, self.batches, self.order, self.augment, self.seed = files, batches, order, augment, seed
        self.by_image = by_image
        self.transform = files.crop.transform() if augment is None else augment.transform(files.crop)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Tensor | Exception:
        try:
            return torch.stack([self.image(position) for position in self.batches[number]])
        except ValueError as error:
            return error

    def image(self, position: int) -> Tensor:
        number = position if self.order is None else int(self.order[position])
        decoded = self.files.decoded(number)
        if self.augment is None:
            return self.transform(decoded)
        with seeded(*self.seed, number if self.by_image else position):
            return self.transform(decoded)


class _Checks(Dataset[Any]):
    """Item i is i if image i cannot be decoded, else None."""

    def __init__(self, files: ImageFiles):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> int | None:
        try:
            self.files.decoded(position)
        except ValueError:
            return position
        return None


def open_image(path: Path | str) -> Any:
    """Return pillow's image of a file, decoded; torchvision's loader would convert it to RGB, which clips 16 bits."""
    with vision("PIL.Image").open(path) as image:
        image.load()
        return image


def rgb(image: Any) -> Any:
    """Return pillow's image in RGB, upright; alpha is dropped, and 16-bit grays are scaled to 8 bits.

    Args:
        image: An image of pillow's in any mode. If its EXIF says how the camera was held, a copy is turned accordingly.
    """
    with suppress(Exception):  # pillow raises many types where EXIF is damaged; the pixels may be whole
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = vision("PIL.ImageOps").exif_transpose(image)
    if image.mode.startswith("I"):  # pillow would clip at 255
        pixels = np.clip(np.asarray(image, np.int64) >> 8, 0, 255)
        image = vision("PIL.Image").fromarray(pixels.astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # pillow warns without this step
    return image.convert("RGB")
