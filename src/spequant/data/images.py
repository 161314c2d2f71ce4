"""Image sets, in memory as uint8 or in files that are decoded when they are read, and their batches.

Order and augmentation are computed from (seed, epoch, step), so that training can resume at any step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from spequant.data.configuration import Configuration
from spequant.data.image_files import ImageFiles, RandomCrop

EVERYTHING = slice(None)
HOLD_OUT_SEED = 2009_14502
"""Fixed, so that every run holds out the same images."""
IGNORED_LABEL = 255
"""Value of a mask outside of its image, which `Segmentation` leaves out."""


@dataclass(frozen=True)
class ImageSet:
    """Images with one class each, or with another target each, which a recipe's `task` then has to read.

    Attributes:
        images: uint8 (n, channels, height, width), or `ImageFiles`.
        labels: Classes, int64 (n,), in [0, classes). Or other targets, (n, ...): floats (n,) or (n, targets) for
            regression; 0 and 1, (n, labels), for several labels; masks, uint8 or int64 (n, height, width), for
            segmentation of images in memory.
        mean, std: Per channel, of images scaled to [0, 1].
        classes: Number of classes, targets or labels: of the network's outputs.
        names: What these are called, in the order of the labels; None: nobody says.

    Raises:
        ValueError: Images or labels have another dtype, shape or range, or names are not as many as classes.
    """

    images: UInt8[Tensor, "n channels height width"] | ImageFiles
    labels: Int64[Tensor, "n"] | Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"images are {self.images.dtype} of shape {tuple(self.images.shape)}; "
                "expected uint8 (n, channels, height, width)"
            )
        if self.labels.shape[:1] != self.images.shape[:1]:
            raise ValueError(
                f"labels have shape {tuple(self.labels.shape)}; expected ({len(self.images)},), one per image, or "
                f"other targets, ({len(self.images)}, ...)"
            )
        if self.labels.is_floating_point() and not bool(torch.isfinite(self.labels).all()):
            raise ValueError("labels are NaN or infinite; expected finite targets: leave out the images without any")
        if self.masks and self.labels.shape[1:] != self.images.shape[2:]:
            raise ValueError(
                f"labels are masks of shape {tuple(self.labels.shape[1:])}; expected {tuple(self.images.shape[2:])}, "
                "the size of the images"
            )
        if self.masks and isinstance(self.images, ImageFiles):
            raise ValueError("labels are masks and images are in files; expected images in memory, uint8")
        if (
            self.of_classes
            and len(self.labels)
            and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes
        ):
            low, high = int(self.labels.min()), int(self.labels.max())
            raise ValueError(f"labels run from {low} to {high}; expected 0 to {self.classes - 1}")
        if self.names is not None and len(self.names) != self.classes:
            raise ValueError(f"names are {len(self.names)}; expected {self.classes}, one per class")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def of_classes(self) -> bool:
        """Whether each image has one class."""
        return self.labels.dim() == 1 and not self.labels.is_floating_point()

    @property
    def masks(self) -> bool:
        """Whether each image has a mask, of a class per pixel."""
        return self.labels.dim() == 3

    @property
    def configuration(self) -> Configuration | None:
        """How an image from a file becomes such an image; None: images in memory that are not square.

        Images in memory have a size and no crop: the shorter side is scaled to it, and the middle is cut out.
        """
        channels, height, width = self.images.shape[1:]
        mean, std = (tuple(v) * channels if len(v) == 1 else tuple(v) for v in (self.mean, self.std))
        if isinstance(self.images, ImageFiles):
            crop = self.images.crop
            return Configuration(mean, std, crop.share, crop.interpolation, crop.size, crop.mode)
        return Configuration(mean, std, crop_pct=1.0, size=height) if height == width else None

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the set on `device`; images in files are put there when they are decoded."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def part(self, indices: Tensor | slice) -> "ImageSet":
        """Return the images at `indices` (int64 or a slice) with their labels."""
        images = self.images.part(indices) if isinstance(self.images, ImageFiles) else self.images[indices]
        return replace(self, images=images, labels=self.labels[indices])

    def normalise(self, images: UInt8[Tensor, "batch channels height width"]) -> Float[Tensor, "..."]:
        """Return (images / 255 - mean) / std in fp32."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class Augment:
    """Augmentation of images in memory: zero padding, a random crop of the old size, and a random horizontal flip.

    Attributes:
        padding: Pixels on each side, 0 or more.
        flip: Whether half of the images are flipped.
    """

    padding: int = 4
    flip: bool = True

    def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Return random numbers (3, batch): top and left of the crop in pixels, and 1 for a flip, per image."""
        corners = rng.integers(0, 2 * self.padding + 1, size=(2, batch))
        flips = rng.random(batch) < 0.5 if self.flip else np.zeros(batch, bool)
        return np.stack([*corners, flips])

    def __call__(
        self, images: UInt8[Tensor, "batch channels height width"], drawn: np.ndarray, fill: int = 0
    ) -> Tensor:
        """Return the augmented batch, on the device of `images`; `drawn` is from `draw`, `fill` the padding's value."""
        batch, channels, height, width = images.shape
        top, left, flip = torch.from_numpy(drawn).to(images.device, non_blocking=True)
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(batch, width)
        columns = left[:, None] + torch.where(flip[:, None] > 0, width - 1 - columns, columns)
        padded = torch.nn.functional.pad(images, (self.padding,) * 4, value=fill)
        pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (batch, height, width), in padded planes
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
    """Yield the training batches of an epoch, without a shorter last batch.

    Args:
        data: The training images.
        batch_size: Images per batch, over all processes.
        seed, epoch: The order depends only on these, the augmentation also on the step.
        augment: `Augment`, which is applied after the crop of evaluation; or `RandomCrop`, only for images in files.
            None: no augmentation.
        start: First step that is yielded, 0 or more.
        part: The slice of each batch that this process takes. All processes together yield the same images, with the
            same augmentation, as one process would.

    Yields:
        (images, labels): normalised fp32 images in channels-last memory format, and their labels. Masks are cropped and
        flipped like their images, and 255 at what was padded.

    Raises:
        ValueError: A number is out of range, or `augment` is a `RandomCrop` and the images are in memory.
    """
    if isinstance(augment, RandomCrop) and not isinstance(data.images, ImageFiles):
        raise ValueError("augment is a RandomCrop, which images in memory do not take; expected Augment or None")
    order, parts = epoch_order(len(data), batch_size, seed=seed, epoch=epoch, start=start, part=part)
    indices = torch.from_numpy(order).to(data.labels.device)
    batches = [indices[positions.start : positions.stop : positions.step] for positions in parts]
    if isinstance(data.images, ImageFiles):
        crop = augment if isinstance(augment, RandomCrop) else None
        pixels = data.images.read(parts, order, crop, (seed, epoch))
    else:
        pixels = (data.images[batch] for batch in batches)
    for step, (batch, images) in enumerate(zip(batches, pixels, strict=True), start):
        labels = data.labels[batch]
        if isinstance(augment, Augment):
            drawn = augment.draw(batch_size, np.random.default_rng((seed, epoch, step)))
            drawn = np.ascontiguousarray(drawn[:, part])
            images = augment(images, drawn)
            if data.masks:  # a mask moves with its image
                labels = augment(labels.unsqueeze(1), drawn, fill=IGNORED_LABEL).squeeze(1)
        yield data.normalise(images).contiguous(memory_format=torch.channels_last), labels


def epoch_order(
    count: int, batch_size: int, *, seed: int, epoch: int, start: int = 0, part: slice = EVERYTHING
) -> tuple[np.ndarray, list[range]]:
    """Return in which order an epoch reads `count` images, and which positions of it each batch has.

    Args:
        count: Number of images, 1 or more.
        batch_size, seed, epoch, start, part: As in `train_batches`.

    Returns:
        (order, parts): position i is image order[i], int64 (count,); one range of positions per batch.

    Raises:
        ValueError: `batch_size` or `start` is out of range.
    """
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size is {batch_size!r}; expected 1 to {count}, the number of images")
    if start < 0:
        raise ValueError(f"start is {start!r}; expected 0 or more, the number of a step")
    order = np.random.default_rng((seed, epoch)).permutation(count)
    steps = range(start, count // batch_size)
    return order, [range(step * batch_size, (step + 1) * batch_size)[part] for step in steps]


def eval_batches(data: ImageSet, batch_size: int, *, turn: int = 0, turns: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images once, in order; the last batch can be shorter.

    Args:
        data: The images.
        batch_size: Images per batch, 1 or more.
        turn, turns: Only every `turns`-th batch is yielded, from number `turn` on, so that `turns` processes can share
            the images.

    Yields:
        (images, labels): normalised fp32 images, and their labels.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected 1 or more images")
    parts = [slice(start, start + batch_size) for start in range(0, len(data), batch_size)][turn::turns]
    if isinstance(data.images, ImageFiles):
        pixels = data.images.read([range(len(data))[part] for part in parts])
    else:
        pixels = (data.images[part] for part in parts)
    for part, images in zip(parts, pixels, strict=True):
        yield data.normalise(images), data.labels[part]


def hold_out(train: ImageSet, count: int) -> tuple[ImageSet, ImageSet | None]:
    """Split `count` images off a training set, the same ones each time; the shares of classes, if any, are preserved.

    Args:
        train: The training images.
        count: Number of images to hold out, 0 or more and fewer than there are.

    Returns:
        (training images, held-out images); (train, None) if `count` is 0.

    Raises:
        ValueError: `count` is out of range.
    """
    if not 0 <= count < len(train):
        raise ValueError(f"held_out is {count!r}; expected 0 to {len(train) - 1}, fewer than the training images")
    if count == 0:
        return train, None
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(train))
    labels = train.labels.cpu().numpy()[order] if train.of_classes else np.zeros(len(train))
    # The rank of an image within its class, divided by the size of the class; the lowest ranks are held out.
    rank = np.empty(len(train))
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        rank[positions] = (np.arange(len(positions)) + 0.5) / len(positions)
    by_rank = order[np.argsort(rank, kind="stable")]
    held_out, rest = np.sort(by_rank[:count]), np.sort(by_rank[count:])
    return train.part(torch.from_numpy(rest)), train.part(torch.from_numpy(held_out))
