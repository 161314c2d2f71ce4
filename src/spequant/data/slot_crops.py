"""Crops that can be made again: the augmentation of an image is a function of (seed, slot, image) alone.

Beside them the facts that crops follow from, by which a file says of which crops it is.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spequant.data.image_files import ImageFiles, RandomCrop
from spequant.data.images import Augment, ImageSet

SAMPLED = 8
"""Images whose crops are among the facts."""
MEANINGS = {"content": "the images, their labels or their order", "crops": "pixels of crops that were made again"}
AGAIN = "make it anew with `spequant soft-labels`, or train with the data and augmentation that it was made with"


def slot_crops(
    data: ImageSet,
    parts: Sequence[range],
    order: np.ndarray,
    augment: Augment | RandomCrop | None,
    seed: int,
    slot: int,
) -> Iterator[Tensor]:
    """Yield crops in which each image depends only on (seed, slot, its number), one tensor per part.

    Args:
        data: The images.
        parts: Positions of each batch.
        order: Position i is image order[i].
        augment: The augmentation; None: none.
        seed, slot: 0 or more.

    Yields:
        uint8 (k, channels, height, width), not normalised.

    Raises:
        ValueError: `augment` is a `RandomCrop` and the images are in memory.
    """
    numbers = [order[part.start : part.stop : part.step] for part in parts]
    if isinstance(data.images, ImageFiles):
        crop = augment if isinstance(augment, RandomCrop) else None
        pixels = data.images.read(parts, order, crop, (seed, slot), by_image=True)
    elif isinstance(augment, RandomCrop):
        raise ValueError("augment is a RandomCrop, which images in memory do not take; expected Augment or None")
    else:
        pixels = (data.images[torch.from_numpy(batch).to(data.images.device)] for batch in numbers)
    drawn = augment.draw(len(data), np.random.default_rng((seed, slot))) if isinstance(augment, Augment) else None
    for batch, images in zip(numbers, pixels, strict=True):
        yield images if drawn is None else augment(images, np.ascontiguousarray(drawn[:, batch]))  # type: ignore[misc]


def crop_facts(data: ImageSet, augment: Augment | RandomCrop | None, seed: int, slots: int) -> dict[str, Any]:
    """Return what the crops of a training set follow from, as JSON."""
    files = isinstance(data.images, ImageFiles)
    return {
        "images": len(data),
        "classes": data.classes,
        "shape": list(data.images.shape[1:]),
        "mean": list(data.mean),
        "std": list(data.std),
        "crop": repr(data.images.crop) if isinstance(data.images, ImageFiles) else None,
        "augment": repr(augment),
        "content": digest(data.labels, _names(data.images) if files else data.images),  # type: ignore[arg-type]
        "crops": digest(*slot_crops(data, *_sample(len(data)), augment, seed, slots - 1)),
    }


def _sample(count: int) -> tuple[list[range], np.ndarray]:
    """Return (parts, order) of some images, first and last ones among them."""
    order = np.arange(count)
    order[: min(SAMPLED, count)] = np.linspace(0, count - 1, min(SAMPLED, count)).astype(int)
    return [range(min(SAMPLED, count))], order


def _names(images: ImageFiles) -> Tensor:
    """Return names of files, with that of their folder, as bytes: what is above differs from machine to machine."""
    names = "\n".join("/".join(Path(images.name(i)).parts[-2:]) for i in range(len(images)))
    return torch.from_numpy(np.frombuffer(names.encode(), np.uint8).copy())


def check_same(path: Path, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the facts of the file at `path` that are others here.

    If facts that say more differ, those of `MEANINGS`, which follow from them, are left out.
    """
    unequal = [name for name in expected if stored.get(name) != expected[name]]
    plain = [name for name in unequal if name not in MEANINGS] or unequal
    if plain:
        texts = (f"{name}{_meaning(name)} is {stored.get(name)}, expected {expected[name]}" for name in plain)
        raise ValueError(f"{path} is of other crops: {'; '.join(texts)}; {AGAIN}")


def _meaning(name: str) -> str:
    return f" ({MEANINGS[name]})" if name in MEANINGS else ""


def digest(*tensors: Tensor) -> str:
    """Return a digest of the bytes of tensors, in hexadecimal."""
    total = hashlib.blake2b(digest_size=8)
    for x in tensors:
        total.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
