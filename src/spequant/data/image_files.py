"""Images that stay where they are and are decoded as they are read: what stands in for an `ImageSet`'s uint8 tensor.

What a random crop takes follows from (seed, epoch, position in the epoch), whichever process decodes the image.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spequant.data.vision import seeded, vision

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATHS = ("samples", "_samples", "_image_files", "_images")  # where torchvision's sets keep the names of their files

Transform = Callable[[Any], Tensor]
"""RGB image of pillow's -> uint8 (3, size, size)"""


class Source(Protocol):
    """Any map-style set of (image of pillow's, label), e.g. torchvision's."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Crop:
    """How an image is evaluated: its shorter side scaled to `size` / `share` pixels, then the middle `size` x `size`.

    share: above 0, at most 1. interpolation: one of `INTERPOLATIONS`. mode: timm's, "squash": both sides scaled to that
    length, "border": the longer one, and the rest filled. A smaller image is enlarged.
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
        return vision("timm.data").create_transform(
            (3, self.size, self.size),
            crop_pct=self.share * (1 - 1e-9),  # of which timm takes the next lower whole length
            crop_mode=self.mode,
            interpolation=self.interpolation,
            normalize=False,
        )


@dataclass(frozen=True)
class RandomCrop:
    """timm's augmentation of training: a random part of the image scaled to the size, and a random horizontal flip.

    scale: least share of the image's area, above 0, at most 1. color_jitter: largest change of brightness, contrast and
    saturation, 0 or more, e.g. .4; None: none. auto_augment: timm's notation, e.g. "rand-m9-mstd0.5", which stands in
    for the jitter. mean: of the images, what some of its operations fill with.
    """

    scale: float = 0.08
    color_jitter: float | None = None
    auto_augment: str | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError(f"crop_scale is {self.scale!r}; expected above 0 and at most 1")
        if self.color_jitter is not None and not self.color_jitter >= 0:
            raise ValueError(f"color_jitter is {self.color_jitter!r}; expected 0 or more, or None")

    def transform(self, crop: Crop) -> Transform:
        """ValueError: auto_augment is not timm's notation."""
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
    """Images decoded when asked for: `files[a:b]`, or int64 indices in place of a slice, is uint8 (k, 3, size, size).

    source: (image, label) by number; images of any size and mode, made RGB. crop: how they are evaluated. workers:
    processes that decode in `read`; 0: this one. What is asked for by index this process decodes.
    ValueError names a file that cannot be decoded, when it is.
    """

    def __init__(self, source: Source, crop: Crop, *, workers: int = 0):
        if workers < 0:
            raise ValueError(f"workers is {workers!r}; expected 0 or more processes")
        self.source, self.crop, self.workers = source, crop, workers
        self.chosen = np.arange(len(source))
        self.device, self.dtype = torch.device("cpu"), torch.uint8

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self.crop.size, self.crop.size))

    def dim(self) -> int:
        return 4

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        positions = np.arange(len(self))[indices if isinstance(indices, slice) else indices.cpu().numpy()]
        transform = self.crop.transform()
        images = [transform(self.decoded(int(i))) for i in positions]
        return (torch.stack(images) if images else torch.empty((0, *self.shape[1:]), dtype=self.dtype)).to(self.device)

    def to(self, device: torch.device | str) -> "ImageFiles":
        """The same, its decoded images put on `device`."""
        moved = copy(self)
        moved.device = torch.device(device)
        return moved

    def part(self, indices: Tensor | slice) -> "ImageFiles":
        """The images at `indices` (int64 or a slice), of the same source; nothing is decoded."""
        part = copy(self)
        part.chosen = self.chosen[indices if isinstance(indices, slice) else indices.cpu().numpy()]
        return part

    def name(self, position: int) -> str:
        """Of the file, where the source tells; else the image's number and the source."""
        index = int(self.chosen[position])
        for attribute in PATHS:
            paths = getattr(self.source, attribute, None)
            if paths is not None and len(paths) == len(self.source):
                return str(paths[index][0] if isinstance(paths[index], tuple | list) else paths[index])
        return f"image {index} of {type(self.source).__name__}"

    def decoded(self, position: int) -> Any:
        """pillow's RGB image. ValueError: damaged, or no image at all."""
        try:
            return rgb(self.source[int(self.chosen[position])][0])
        except Exception as error:  # pillow raises a dozen kinds, by format
            raise ValueError(
                f"{self.name(position)} is no image that can be read ({error!r}); put a whole one in its place, remove "
                "it, or have such files looked for and left out: data.check_images"
            ) from error

    def read(
        self,
        batches: Sequence[range],
        order: np.ndarray | None = None,
        augment: RandomCrop | None = None,
        seed: tuple[int, ...] = (),
    ) -> Iterator[Tensor]:
        """uint8 images (k, 3, size, size) of each of `batches`, ranges of positions; in `order` where it is given.

        The image at position i is augmented as (seed..., i) says, whatever the number of workers.
        """
        loader = DataLoader(
            _Batches(self, batches, order, augment, seed),
            batch_size=None,
            sampler=range(len(batches)),
            num_workers=min(self.workers, len(batches)),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        for images in loader:
            if isinstance(images, Exception):
                raise images
            yield images.to(self.device, non_blocking=True)

    def damaged(self) -> dict[int, str]:
        """Positions and names of the images that cannot be decoded; decodes them all, in `workers` processes."""
        looks = DataLoader(
            _Looks(self), batch_size=64, collate_fn=list, num_workers=self.workers, generator=torch.Generator()
        )
        return {position: self.name(position) for batch in looks for position in batch if position is not None}


class _Batches(Dataset[Any]):
    """What a worker makes: batch number k; or the error that names a damaged file, to be raised without the worker's
    traceback around it."""

    def __init__(
        self,
        files: ImageFiles,
        batches: Sequence[range],
        order: np.ndarray | None,
        augment: RandomCrop | None,
        seed: tuple[int, ...],
    ):
        self.files, self.batches, self.order, self.augment, self.seed = files, batches, order, augment, seed
        self.transform = files.crop.transform() if augment is None else augment.transform(files.crop)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Tensor | Exception:
        try:
            return torch.stack([self.image(position) for position in self.batches[number]])
        except ValueError as error:
            return error

    def image(self, position: int) -> Tensor:
        decoded = self.files.decoded(position if self.order is None else int(self.order[position]))
        if self.augment is None:
            return self.transform(decoded)
        with seeded(*self.seed, position):
            return self.transform(decoded)


class _Looks(Dataset[Any]):
    """The position itself where the image there cannot be decoded, else None."""

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


def rgb(image: Any) -> Any:
    """pillow's `image` of any mode as RGB: alpha is dropped, 16 bits a channel become 8, as grays."""
    if image.mode.startswith("I"):  # else pillow clips at 255
        pixels = np.clip(np.asarray(image, np.int64) >> 8, 0, 255)
        image = vision("PIL.Image").fromarray(pixels.astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what pillow asks for
    return image.convert("RGB")
