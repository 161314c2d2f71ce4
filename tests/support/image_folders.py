"""Folders of small pictures of noise, as ImageNet's."""

import numpy as np
from PIL import Image


def picture(rng, side=None):
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
