"""The recipes by name: each makes a network that calibrates and takes a training step, and starts where one ends."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import spequant
from spequant.app.recipes import RECIPES
from spequant.app.recipes.readiness import check_ready
from spequant.app.runs.weights import build_network, load_teacher
from spequant.data import ImageSet
from spequant.methods import Start
from spequant.methods.tasks import Classification
from spequant.quantizers import percentile

ROWS = {
    "cifar10-vgg16-w2a2-speq": (3, 10, "CifarVGG"),
    "cifar100-resnet32-w2a2-speq": (3, 100, "CifarResNet"),
    "cifar100-mobilenetv2-w2a2-speq": (3, 100, "CifarMobileNetV2"),
    "fashion-resnet20-w2a2-speq": (1, 10, "CifarResNet"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_tables_takes_a_step(name):
    channels, classes, kind = ROWS[name]
    recipe = RECIPES[name]()
    images = torch.randint(0, 256, (4, channels, 16, 16), dtype=torch.uint8)
    data = ImageSet(images, torch.arange(4), (0.5,) * channels, (0.25,) * channels, classes)
    network = build_network(replace(recipe.network, weights=None), data)
    assert type(network).__name__ == kind
    batch = data.normalise(data.images), data.labels
    model = recipe.quant.build(network)
    spequant.calibrate(model, [batch], samples=4, rule=percentile(99.9))  # at once
    start = Start(network, model, Classification(), 1, recipe.train.seed, lambda bits: model, load_teacher)
    losses = recipe.method.build(start)(model, batch)
    losses.total.backward()
    assert losses.total.isfinite() and losses.logits.shape == (4, classes)


def test_quantized_recipes_start_from_a_float_recipe_of_the_same_data_and_network():
    for name, make in RECIPES.items():
        recipe = make()
        weights = recipe.network.weights
        needed = recipe.network.random and (recipe.method.fixed_teachers or recipe.network.new_head)
        ready = replace(recipe, network=replace(recipe.network, weights=Path("given"))) if needed else recipe
        check_ready(ready)
        if recipe.quantized and weights is not None:
            assert weights.parent == Path("runs"), name
            source = RECIPES[weights.name]()
            assert not source.quantized and source.data == recipe.data and source.network.name == recipe.network.name
