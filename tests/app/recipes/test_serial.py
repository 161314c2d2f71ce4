"""Recipes as files: what is written is read back, whole; what is no recipe of this version is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.recipe import Network
from spequant.app.recipes.serial import differences, from_json, to_json, without_paths
from spequant.data import CIFAR10, Folder
from spequant.methods import JointBits, SPEQDistill, by_name
from spequant.methods.distill import Distill

FLOAT = RECIPES["digits-float"]()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name):
    recipe = RECIPES[name]()
    assert recipe.name == name and from_json(to_json(recipe)) == recipe


@pytest.mark.parametrize("name", by_name)
def test_every_method_survives_its_file(name):
    recipe = Recipe(method=by_name[name]())
    assert from_json(to_json(recipe)) == recipe


def test_tuples_and_paths_survive():
    texts = ("layer*=3/4", "conv1=float")
    method = JointBits.Settings(widths=(3, 5))
    recipe = Recipe(
        quant=Quantization(overrides=texts), network=replace(FLOAT.network, weights=Path("a b")), method=method
    )
    again = from_json(to_json(recipe))
    assert again == recipe and again.quant.overrides == texts and isinstance(again.network.weights, Path)


def test_a_name_stands_for_a_part_with_its_defaults():
    content = {**json.loads(to_json(FLOAT)), "data": "cifar100", "method": "retrain"}
    assert from_json(json.dumps(content)).data == type(RECIPES["cifar100-resnet32-float"]().data)()


@pytest.mark.parametrize(
    ("part", "field", "value", "named"),
    [
        ("train", "epoch", 3, r"recipe\.train .*\['epoch'\].*'epochs'"),
        ("train", "epochs", "3", r"recipe\.train\.epochs is '3'; expected int"),
        ("train", "epochs", True, r"recipe\.train\.epochs is True; expected int"),
        ("train", "epochs", 0, r"recipe\.train: train\.epochs is 0"),
        ("train", "lr", None, r"recipe\.train\.lr is None; expected float"),
        ("train", "compile", 1, r"recipe\.train\.compile is 1; expected bool"),
        ("train", "optimizer", {"name": "sgd", "momentum": 2}, r"recipe\.train\.optimizer: momentum is 2"),
        ("train", "optimizer", "adam", r"recipe\.train\.optimizer: .*'adam'; did you mean adamw"),
        ("network", "weights", 3, r"recipe\.network\.weights is 3; expected Path"),
        ("quant", "weight", "swab", r"recipe\.quant\.weight: .*'swab'; did you mean sawb"),
        ("quant", "weight", {"bits": 3}, r"recipe\.quant\.weight is .*; expected an object with a name"),
        ("quant", "overrides", "a=3", r"recipe\.quant\.overrides is 'a=3'; expected a list"),
        ("method", "widths", [4, 8], r"recipe\.method .*\['widths'\]"),
    ],
)
def test_a_field_that_this_version_cannot_read_is_named(part, field, value, named):
    content = json.loads(to_json(FLOAT))
    content[part][field] = value
    with pytest.raises(ValueError, match=named):
        from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[]", r"recipe is \[\]; expected an object"),
        ("{", "recipe is no JSON"),
        ('{"format": 3}', "recipe has format 3; .* 1 and 2"),
    ],
)
def test_what_is_no_recipe_is_named(text, named):
    with pytest.raises(ValueError, match=named):
        from_json(text)


def test_recipes_differ_in_what_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe()
    other = replace(recipe, train=replace(recipe.train, lr=0.5, threads=3), data=CIFAR10(root=tmp_path))
    assert differences(other, recipe) == ["train.lr is 0.5, expected 0.04"]  # but for where it is carried out
    here, there = (replace(FLOAT, network=replace(FLOAT.network, weights=p)) for p in (Path("a"), tmp_path / "a"))
    assert differences(here, there) == [] != differences(here, FLOAT)
    one, other = (Recipe(network=Network(weights=Path(p))) for p in ("float", "x/../float"))
    assert differences(one, other) == [] != differences(one, Recipe(network=Network(weights=Path("x/float"))))
    assert differences(Recipe(data=Folder(workers=1)), Recipe(data=Folder())) == []
    assert differences(Recipe(data=CIFAR10(mixup=0.2)), Recipe()) == ["data.mixup is 0.2, expected 0.0"]


def test_another_part_is_a_difference_with_all_that_only_one_has():
    found = differences(Recipe(method=by_name["retrain"]()), Recipe())
    assert found[0] == "method.name is 'retrain', expected 'speq'"
    assert "method.temperature is absent, expected 1.0" in found


def test_paths_of_this_machine_are_left_out():
    method = SPEQDistill.Settings(distill=Distill.Settings(teacher=Path("t")))
    recipe = Recipe(data=CIFAR10(root=Path("d")), network=Network(weights=Path("w")), method=method)
    bare = without_paths(recipe)
    assert bare == Recipe(method=SPEQDistill.Settings())
