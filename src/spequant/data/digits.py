"""scikit-learn's handwritten digits (UCI, 8 x 8, 1,797 images), which need no download."""

from dataclasses import dataclass

import numpy as np
import torch

from spequant.data.images import ImageSet, hold_out
from spequant.data.settings import ImagesInMemory
from spequant.extras import needs

TEST_IMAGES = 500
MEAN, STD = (0.305,), (0.376,)
NAMES = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class Digits(ImagesInMemory):
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, which are part of that package."""

    def load(self, network: str) -> tuple[ImageSet, ImageSet]:
        return load_digits()


def load_digits() -> tuple[ImageSet, ImageSet]:
    """Load scikit-learn's digits, with values scaled from 0 .. 16 to 0 .. 255; the split is always the same.

    Returns:
        (train, 1,297 images; test, 500 images), uint8 1 x 8 x 8.

    Raises:
        ModuleNotFoundError: scikit-learn (extra `vision`) is not installed.
    """
    source = needs("sklearn.datasets", "vision").load_digits()
    images = torch.from_numpy(np.round(source.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    train, test = hold_out(
        ImageSet(images, torch.from_numpy(source.target.astype(np.int64)), MEAN, STD, 10, NAMES), TEST_IMAGES
    )
    assert test is not None
    return train, test
