"""Recipes as files: what is written is read back, whole; what is no recipe of this version is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.recipes import RECIPES
from spequant.app.recipes.schema import Quantization, Recipe, differences, from_json, to_json

FLOAT = RECIPES["digits-float"]()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name):
    recipe = RECIPES[name]()
    assert recipe.name == name and from_json(to_json(recipe)) == recipe


def test_tuples_and_paths_survive():
    texts = ("layer*=3/4", "conv1=float")
    recipe = replace(Recipe(quant=Quantization(overrides=texts)), network=replace(FLOAT.network, weights=Path("a b")))
    again = from_json(to_json(recipe))
    assert again == recipe and again.quant.overrides == texts and isinstance(again.network.weights, Path)


@pytest.mark.parametrize(
    ("part", "field", "value", "named"),
    [
        ("train", "epoch", 3, r"recipe\.train .*\['epoch'\].*'epochs'"),
        ("train", "epochs", "3", r"recipe\.train\.epochs is '3'; expected int"),
        ("train", "epochs", True, r"recipe\.train\.epochs is True; expected int"),
        ("train", "lr", None, r"recipe\.train\.lr is None; expected float"),
        ("train", "compile", 1, r"recipe\.train\.compile is 1; expected bool"),
        ("network", "weights", 3, r"recipe\.network\.weights is 3; expected Path"),
        ("quant", "weight", "swab", r"recipe\.quant\.weight is 'swab'; expected .*'sawb'"),
        ("quant", "overrides", "a=3", r"recipe\.quant\.overrides is 'a=3'; expected a list"),
        ("method", "widths", [4, "8"], r"recipe\.method\.widths is '8'; expected int"),
    ],
)
def test_a_field_that_this_version_cannot_read_is_named(part, field, value, named):
    content = json.loads(to_json(FLOAT))
    content[part][field] = value
    with pytest.raises(ValueError, match=named):
        from_json(json.dumps(content))


@pytest.mark.parametrize(("text", "named"), [("[]", r"recipe is \[\]; expected an object"), ("{", "recipe is no JSON")])
def test_what_is_no_recipe_is_named(text, named):
    with pytest.raises(ValueError, match=named):
        from_json(text)


def test_recipes_differ_in_what_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = replace(FLOAT, train=replace(FLOAT.train, lr=0.5, threads=3), data=replace(FLOAT.data, root=tmp_path))
    assert differences(other, FLOAT) == ["train.lr is 0.5, expected 0.1"]  # where it is carried out aside
    here, there = (replace(FLOAT, network=replace(FLOAT.network, weights=p)) for p in (Path("a"), tmp_path / "a"))
    assert differences(here, there) == [] != differences(here, FLOAT)
