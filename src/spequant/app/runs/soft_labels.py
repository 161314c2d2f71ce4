"""The answers of a recipe's float network to the crops of its training, in a file."""

from dataclasses import replace
from pathlib import Path

import torch

from spequant.app.recipes import Recipe
from spequant.app.recipes.origins import weights_origin
from spequant.app.recipes.training import device_named
from spequant.app.recipes.variants import FLOAT_QUANTIZATION, RETRAIN
from spequant.app.runs.images import MEASURED_AT_ONCE, Images, images_at_once
from spequant.app.runs.reporter import Reporter
from spequant.data import SoftLabels, make_soft_labels


def write_soft_labels(
    recipe: Recipe, out: Path, reporter: Reporter, *, slots: int | None, top: int | None, temperature: float
) -> SoftLabels:
    """Write the answers of the float network of `recipe` to the crops of its training images.

    Args:
        recipe: Its network is the teacher; its quantization and method are not read.
        out: The file.
        reporter: Is given progress.
        slots: Crops per image.
        top: Classes whose probabilities are stored.
        temperature: Of the softmax.

    Raises:
        FileNotFoundError: There are no such weights.
        OSError: The file cannot be written.
        ValueError: The teacher's weights are random; the data are no images of classes; or a number is out of range.
    """
    if recipe.network.random or recipe.network.new_head:
        raise ValueError(
            "network.weights is not set: random weights teach nothing; give a float run, or --network.weights RUN. "
            f"{weights_origin(recipe)}"
        )
    if recipe.asks:
        raise ValueError(f"data are {type(recipe.data).__name__}; expected images of classes")
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    recipe = replace(recipe, quant=FLOAT_QUANTIZATION, method=RETRAIN)
    reporter.phase("loading data")
    images = Images(recipe, device_named(recipe.train.device))
    teacher = images.network().eval()
    reporter.phase("the teacher answers")
    return make_soft_labels(
        teacher,
        images.train,
        images.augment,
        out,
        slots=slots,
        top=top,
        temperature=temperature,
        seed=recipe.train.seed,
        batch_size=images_at_once(images.train, MEASURED_AT_ONCE),
        track=reporter.track,
    )
