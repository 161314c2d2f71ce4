"""scikit-learn's handwritten digits (UCI, 8 x 8, 1,797 images): data that comes inside a dependency."""

from dataclasses import dataclass

import numpy as np
import torch

from spequant.data.images import ImageSet, hold_out
from spequant.data.settings import ImagesInMemory
from spequant.extras import needs

TEST_IMAGES = 500
MEAN, STD = (0.305,), (0.376,)


@dataclass(frozen=True, kw_only=True)
class Digits(ImagesInMemory):
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8, part of the package."""

    def load(self, network: str) -> tuple[ImageSet, ImageSet]:
        return load_digits()


def load_digits() -> tuple[ImageSet, ImageSet]:
    """(train, 1,297 images; test, 500), uint8 1 x 8 x 8, the source's 0 .. 16 spread over 0 .. 255; a fixed split."""
    source = needs("sklearn.datasets", "vision").load_digits()
    images = torch.from_numpy(np.round(source.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    train, test = hold_out(
        ImageSet(images, torch.from_numpy(source.target.astype(np.int64)), MEAN, STD, 10), TEST_IMAGES
    )
    assert test is not None
    return train, test
