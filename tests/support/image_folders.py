"""Folders of small pictures of noise, as ImageNet's; a source of images that says when one is decoded."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
"""Without importing it: that takes seconds, and every worker collects every file."""


def picture(rng, side=None):
    from PIL import Image

    height, width = (side, side) if side else rng.integers(8, 41, 2)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def fill(root, classes=("ant", "bee", "cat"), train=10, test=4, ends=("png", "jpg")):
    """A folder as ImageNet's, of pictures of noise, 8 to 40 pixels a side."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", test)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(rng).save(root / part / name / f"{i:02}.{ends[i % len(ends)]}")
    return root


def order_of(data):
    """Which images of its source a set has."""
    return torch.from_numpy(data.images.indices)


class Listed(Dataset):
    """A source of `labels`, under the attribute `name` where it is given: then nothing may be decoded for them."""

    def __init__(self, labels, name=None):
        self.given, self.decodable = labels, name is None
        if name:
            setattr(self, name, labels)

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        if not self.decodable:
            raise AssertionError("decoded")
        return picture(np.random.default_rng(index), 8), self.given[index]
