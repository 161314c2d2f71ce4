"""Stand-ins for the data of a study's `--smoke`: a few small images of two classes, in files, that show nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from spequant.app.recipes import Recipe

CLASSES, EACH = ("dark", "light"), {"train": 24, "val": 8}


def write_images(folder: Path, size: int) -> Path:
    """Write them below `folder`, `size` pixels square, the very same ones each time; `folder`."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in EACH.items():
        for number, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (size, size, 3)) + 127 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{i}.png")
    return folder


def tiny(recipe: Recipe, images: Path, size: int) -> Recipe:
    """`recipe` on those images for one epoch, on plain kernels."""
    data = replace(
        type(recipe.data)(name="folder"),
        root=images,
        size=size,
        crop_scale=0.5,
        held_out=16,
        workers=0,
        measure_every=1,
    )
    train = replace(recipe.train, epochs=1, batch_size=8, precision="fp32", compile=False)
    network = replace(recipe.network, pretrained=False, new_head=False)
    quant = replace(recipe.quant, percentile=99.9)  # at once, where the search for the least error takes seconds
    return replace(recipe, data=data, network=network, quant=quant, train=train)
