"""The literal twin of `spequant.data.Augment`: one image after another."""

import numpy as np
import torch
from torch import Tensor


def augment(images: Tensor, padding: int, flip: bool, rng: np.random.Generator) -> Tensor:
    """Pad, crop and flip each of `images` (batch, channels, height, width) in turn."""
    batch, channels, height, width = images.shape
    (tops, lefts) = rng.integers(0, 2 * padding + 1, size=(2, batch))
    flips = rng.random(batch) < 0.5 if flip else [False] * batch
    results = []
    for image, top, left, mirrored in zip(images, tops, lefts, flips, strict=True):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=images.dtype)
        padded[:, padding : padding + height, padding : padding + width] = image
        crop = padded[:, top : top + height, left : left + width]
        results.append(crop.flip(-1) if mirrored else crop)
    return torch.stack(results)
