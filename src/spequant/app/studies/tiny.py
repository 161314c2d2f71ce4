"""The data of a study's `--smoke`: files of a few small random images, of two classes."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from spequant.app.recipes import Recipe
from spequant.data import Folder

TINY_CLASSES, IMAGES_PER_CLASS = ("dark", "light"), {"train": 24, "val": 8}


def write_images(folder: Path, size: int) -> Path:
    """Write images of `size` x `size` pixels below `folder`, the same ones each time; `folder`."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in IMAGES_PER_CLASS.items():
        for number, name in enumerate(TINY_CLASSES):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (size, size, 3)) + 127 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{i}.png")
    return folder


def tiny(recipe: Recipe, images: Path, size: int) -> Recipe:
    """`recipe` on the images of `write_images` for one epoch, in fp32 and not compiled."""
    data = Folder(root=images, size=size, crop_scale=0.5, held_out=16, workers=0)
    train = replace(recipe.train, epochs=1, batch_size=8, precision="fp32", compile=False, measure_every=1)
    network = replace(recipe.network, pretrained=False, new_head=False)
    quant = replace(recipe.quant, percentile=99.9)  # quick, where the search for the least error takes seconds
    return replace(recipe, data=data, network=network, quant=quant, train=train)
