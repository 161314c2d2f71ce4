"""A recipe's choice of a method: what is made of it, and whole small runs of each."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest

import spequant
from spequant.app.recipes import RECIPES, run
from spequant.app.recipes.methods import BUILDERS, Given, build_method
from spequant.app.recipes.schema import MethodChoice, Recipe, from_json, to_json
from spequant.methods.base import trained_by
from support.equations import grads, quantized, small_batch, small_network

RIVALS = [n for n in BUILDERS if n not in ("retrain", "speq", "distill", "speq-distill")]


@pytest.fixture
def batch():
    return small_batch()


@pytest.fixture
def given(batch):
    """What a recipe's methods are made with."""
    network = small_network()
    at = functools.partial(quantized, network, batch)
    return Given(network, 5, 10, at, at(2))


def test_the_recipe_adds_what_it_names(given):
    assert type(build_method(MethodChoice("speq"), given)) is spequant.SPEQ
    made = build_method(MethodChoice("speq", temperature=2.0, temperature_end=1.0, probability_end=0.2), given)
    assert (made.temperatures, made.probabilities, made.steps, made.trained) == ((2.0, 1.0), (0.5, 0.2), 10, None)
    assert build_method(MethodChoice("speq", probability_end=0.0), given).probabilities == (0.5, 0.0)
    made = build_method(MethodChoice("speq", average=0.9, feature_weight=2.0), given)
    assert (made.decay, made.head, made.feature_weight, made.speq.seed) == (0.9, "linear", 2.0, 5)
    assert made.trained is not given.student and made.trained.training
    parts = build_method(MethodChoice("speq", average=0.9), replace(given, accumulate=4))  # calls that make a step
    assert parts.decay**4 == pytest.approx(0.9)


SETTINGS = {"apprentice": {"joint": True}, "qfd": {"feature_bits": 3}, "cmt-kd": {"widths": (3, 6)}}


@pytest.mark.parametrize("name", BUILDERS)
def test_each_name_makes_a_method_that_trains(name, given, batch):
    choice = MethodChoice(name, **SETTINGS.get(name, {}))
    method = build_method(choice, given)
    losses = method(given.student, batch)
    losses.total.backward()
    assert losses.total.isfinite() and all(grads(given.student))
    learns = trained_by(method)
    assert (learns is not None) == (name in ("apprentice", "qkd", "cmt-kd"))
    assert from_json(to_json(Recipe(method=choice))).method == choice  # widths and all


def test_what_the_recipe_sets_reaches_the_method(given):
    def made(name, **settings):
        return build_method(MethodChoice(name, **settings), given)

    assert (made("gslr", temperature=3.0, weight=0.5).temperature, made("gslr", weight=0.5).weight) == (3.0, 0.5)
    assert (made("gslr").steps, made("qkd").alone, made("qkd").together) == (10, 3, 7)
    assert made("qfd", feature_bits=3).bits == 3
    assert made("joint-bits", widths=(3, 5)).widths == made("member-ensemble", widths=(3, 5)).widths == (3, 5)
    assert list(made("cmt-kd", widths=(3, 6)).trained.conv1.bits) == [3, 6]
    assert made("distill", loss="cosine").loss is spequant.methods.losses.cosine
    assert made("distill").loss is spequant.methods.losses.kl and made("speq").loss is spequant.methods.losses.cosine
    both = made("speq-distill", weight=0.3)
    assert both.speq.weight == both.distill.weight == 0.3


def whole(folder: Path, weights: Path, name: str, weight: str) -> float:
    """A run of one epoch on 256 digits; its accuracy."""
    recipe = RECIPES["digits-w2a2-speq"]()
    recipe = replace(
        recipe,
        quant=replace(recipe.quant, weight=weight, percentile=99.0),
        network=replace(recipe.network, weights=weights),
        data=replace(recipe.data, images=256),
        method=replace(recipe.method, name=name, temperature=None),
        train=replace(recipe.train, epochs=1, threads=1),
    )
    result = run(recipe, folder)
    assert run(recipe, folder, resume=True) == result  # the recipe is read back, widths and all
    return result["test_accuracy"]


def test_a_whole_run_of_teachers_on_other_quantizers(tmp_path, digits_run):
    """CMT-KD's teachers of 4 and 8 bits, where the student's quantizer does not reach so far."""
    assert whole(tmp_path / "run", digits_run.parent / "digits-float", "cmt-kd", "apot") > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_a_whole_run(name, tmp_path, digits_run):
    assert whole(tmp_path / "run", digits_run.parent / "digits-float", name, "sawb") > 60
