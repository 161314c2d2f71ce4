"""Image sets held whole on a device as uint8, or in files that are decoded as they are read; batches of them.

Order and augmentation are arithmetic: they follow from (seed, epoch, step), not from a position in a stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from spequant.data.image_files import ImageFiles, RandomCrop

EVERYTHING = slice(None)
HOLD_OUT_SEED = 2009_14502  # fixed, so that every run holds out the same images


@dataclass(frozen=True)
class ImageSet:
    """images: uint8, or `ImageFiles`, read alike; labels: int64 in [0, classes); mean, std: per channel, of images
    scaled to [0, 1]."""

    images: UInt8[Tensor, "n channels height width"] | ImageFiles
    labels: Int64[Tensor, "n"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"images are {self.images.dtype} of shape {tuple(self.images.shape)}; "
                "expected uint8 (n, channels, height, width)"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels have shape {tuple(self.labels.shape)}; expected ({len(self.images)},), one an image"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes:
            low, high = int(self.labels.min()), int(self.labels.max())
            raise ValueError(f"labels run from {low} to {high}; expected 0 to {self.classes - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def part(self, indices: Tensor | slice) -> "ImageSet":
        """The images at `indices` (int64 or a slice)."""
        images = self.images.part(indices) if isinstance(self.images, ImageFiles) else self.images[indices]
        return replace(self, images=images, labels=self.labels[indices])

    def normalise(self, images: UInt8[Tensor, "batch channels height width"]) -> Float[Tensor, "..."]:
        """fp32: (images / 255 - mean) / std."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class Augment:
    """Zero padding by `padding` pixels, a random crop of the old size, and a random horizontal flip."""

    padding: int = 4
    flip: bool = True

    def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """(3, batch): top, left, mirrored or not, for each image of a batch."""
        drawn = rng.integers(0, 2 * self.padding + 1, size=(2, batch))
        flips = rng.random(batch) < 0.5 if self.flip else np.zeros(batch, bool)
        return np.stack([*drawn, flips])

    def __call__(self, images: UInt8[Tensor, "batch channels height width"], drawn: np.ndarray) -> Tensor:
        """The batch augmented as `drawn` by `draw`; on the device of `images`."""
        batch, channels, height, width = images.shape
        top, left, flip = torch.from_numpy(drawn).to(images.device, non_blocking=True)
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(batch, width)
        columns = left[:, None] + torch.where(flip[:, None] > 0, width - 1 - columns, columns)
        padded = torch.nn.functional.pad(images, (self.padding,) * 4)
        pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (batch, height, width), into a padded plane
        pixels = pixels.view(batch, 1, -1).expand(batch, channels, -1)
        return padded.flatten(2).gather(2, pixels).view(batch, channels, height, width)


def train_batches(
    data: ImageSet,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augment: Augment | RandomCrop | None,
    start: int = 0,
    part: slice = EVERYTHING,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(normalised fp32 images, channels-last, labels) ordered by (seed, epoch), from step `start` on; no short last
    batch.

    augment: `Augment` works on the images as they are evaluated, `RandomCrop` on those of files alone, as it decodes.
    part: the slice of each batch that one of several processes takes; together they see the very images, augmented the
      very same way, that one process would.
    """
    if not 1 <= batch_size <= len(data):
        raise ValueError(f"batch_size is {batch_size!r}; expected 1 to {len(data)}, the number of images")
    if isinstance(augment, RandomCrop) and not isinstance(data.images, ImageFiles):
        raise ValueError("augment is a RandomCrop, which images in memory do not take; expected Augment or None")
    if start < 0:
        raise ValueError(f"start is {start!r}; expected 0 or more, the number of a step")
    order = np.random.default_rng((seed, epoch)).permutation(len(data))
    steps = range(start, len(data) // batch_size)
    parts = [range(step * batch_size, (step + 1) * batch_size)[part] for step in steps]
    places = torch.from_numpy(order).to(data.labels.device)
    chosen = [places[one.start : one.stop : one.step] for one in parts]
    if isinstance(data.images, ImageFiles):
        crop = augment if isinstance(augment, RandomCrop) else None
        pixels = data.images.read(parts, order, crop, (seed, epoch))
    else:
        pixels = (data.images[indices] for indices in chosen)
    for step, indices, images in zip(steps, chosen, pixels, strict=True):
        if isinstance(augment, Augment):
            drawn = augment.draw(batch_size, np.random.default_rng((seed, epoch, step)))
            images = augment(images, np.ascontiguousarray(drawn[:, part]))
        yield data.normalise(images).contiguous(memory_format=torch.channels_last), data.labels[indices]


def eval_batches(data: ImageSet, batch_size: int, *, turn: int = 0, turns: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """(normalised fp32 images, labels), everything once, in order; the last batch may be short.

    turn, turns: every `turns`-th batch from number `turn` on, so that as many processes share the work.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected 1 or more images")
    chosen = [slice(start, start + batch_size) for start in range(0, len(data), batch_size)][turn::turns]
    if isinstance(data.images, ImageFiles):
        pixels = data.images.read([range(len(data))[part] for part in chosen])
    else:
        pixels = (data.images[part] for part in chosen)
    for part, images in zip(chosen, pixels, strict=True):
        yield data.normalise(images), data.labels[part]


def hold_out(train: ImageSet, count: int) -> tuple[ImageSet, ImageSet | None]:
    """(the rest, `count` images, every class at its share); always the same ones; count 0: (train, None)."""
    if not 0 <= count < len(train):
        raise ValueError(f"held_out is {count!r}; expected 0 to {len(train) - 1}, fewer than the training images")
    if count == 0:
        return train, None
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(train))
    labels = train.labels.cpu().numpy()[order]
    # Rank of each image within its class, in units of the class' size: the smallest ranks are held out.
    rank = np.empty(len(train))
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where] = (np.arange(len(where)) + 0.5) / len(where)
    by_rank = order[np.argsort(rank, kind="stable")]
    held, rest = np.sort(by_rank[:count]), np.sort(by_rank[count:])
    return train.part(torch.from_numpy(rest)), train.part(torch.from_numpy(held))
