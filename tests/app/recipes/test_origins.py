"""Where float weights come from, by recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.cli import main
from spequant.app.recipes import recipe_named
from spequant.app.recipes.origins import float_recipe, weights_origin


def test_the_float_recipe_is_of_the_same_network_and_data():
    for name, floating in (
        ("cifar10-resnet20-w2a2-speq", "cifar10-resnet20-float"),
        ("cifar10-5k-resnet20-w2a2-speq", "cifar10-5k-resnet20-float"),
        ("fashion-resnet20-w2a2-retrain", "fashion-resnet20-float"),
        ("transfer-resnet20-w4a4-speq", "cifar10-resnet20-float"),
    ):
        assert float_recipe(recipe_named(name)).name == floating
    assert float_recipe(recipe_named("imagenet-resnet18-w2a2-speq")) is None


def test_a_recipe_says_where_its_weights_come_from():
    recipe = recipe_named("cifar10-resnet20-w2a2-speq")
    assert "`spequant train cifar10-resnet20-float`" in weights_origin(recipe)
    assert "--network.pretrained" in weights_origin(recipe_named("imagenet-alexnet-w2a2-speq"))
    other = replace(recipe, network=replace(recipe.network, name="resnet56"))
    assert "resnet56" in weights_origin(other) and "spequant train" not in weights_origin(other)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["digits-w2a2-speq"], "digits-float does not exist; run `spequant train digits-float` first$"),
        (["digits-w2a2-speq", "--network.weights", "a.pt"], r"a\.pt does not exist; .*resnet8.*`spequant train digits"),
        (["transfer-resnet20-w4a4-speq"], "new_head is True; .*`spequant train cifar10-resnet20-float`"),
    ],
)
def test_absent_weights_name_it(words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=named):
        main(["train", *words, "--out", str(Path("run"))])
