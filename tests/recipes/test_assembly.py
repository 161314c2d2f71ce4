"""What a recipe trains with, brought together: which weights student and teacher have, at the start and resumed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spequant.layers import weight_quantizers
from spequant.recipes import RECIPES, run
from spequant.recipes.assembly import assemble
from spequant.recipes.schema import MethodChoice, Recipe
from spequant.train import make_accelerator


def digits(name: str, weights: Path | None = None, **train) -> Recipe:
    base = RECIPES[name]()
    network, data = replace(base.network, weights=weights), replace(base.data, images=256)
    return replace(base, network=network, data=data, train=replace(base.train, **{"epochs": 1, **train}))


def made(recipe, snapshot=None):
    return assemble(recipe, make_accelerator("fp32", device="cpu"), snapshot).state


def test_averaged_weights_and_frozen_ones_are_gone_on_with():
    recipe = replace(digits("digits-w2a2-speq", freeze_threshold=0.02), method=MethodChoice("speq", average=0.9))
    again = made(recipe, made(recipe).capture())
    assert all(q.frozen is None for q in weight_quantizers(again.method.trained).values())
    assert any(q.frozen is not None for q in weight_quantizers(again.model).values())


def test_a_float_students_teacher_is_another_network(digits_run):
    weights = digits_run.parent / "digits-float"
    start = made(replace(digits("digits-float"), method=MethodChoice("distill", teacher=weights)))
    assert not torch.equal(start.model.linear.weight, start.method.teacher.linear.weight)  # one has learned
    recipe = replace(digits("digits-float", weights), method=MethodChoice("distill"))
    before = made(recipe)
    snapshot = before.capture()
    tensors = {k: v + 1 if k.startswith("model.") and v.is_floating_point() else v for k, v in snapshot.tensors.items()}
    again = made(recipe, replace(snapshot, tensors=tensors))
    theirs, own = again.method.teacher.linear.weight, before.method.teacher.linear.weight
    assert torch.equal(theirs, own) and torch.equal(again.model.linear.weight, own + 1)


def test_a_network_of_fewer_bits_starts_from_the_weights_of_a_run(digits_run):
    recipe = digits("digits-w2a2-speq", digits_run)
    recipe = replace(recipe, quant=replace(recipe.quant, weight_bits=1, act_bits=1))
    weights = load_file(digits_run / "model.safetensors")
    model = made(recipe).model
    for name in ("conv1", "layer2.0.conv1"):
        assert torch.equal(model.get_submodule(name).layer.weight, weights[f"{name}.layer.weight"])


@pytest.mark.slow
def test_a_run_of_fewer_bits_starts_from_one_of_more(tmp_path):
    added = MethodChoice("speq", temperature_end=1.0, probability_end=0.2, average=0.9, feature_weight=0.5)
    recipe = replace(digits("digits-w2a2-speq", epochs=2), method=added)
    result = run(replace(recipe, quant=replace(recipe.quant, weight_bits=4, act_bits=4)), tmp_path / "w4a4")
    assert result["test_accuracy"] > 60
    scratch = digits("digits-w2a2-speq")
    lower = replace(scratch, network=replace(scratch.network, weights=tmp_path / "w4a4"))
    assert run(lower, tmp_path / "w2a2")["test_accuracy"] > run(scratch, tmp_path / "scratch")["test_accuracy"] + 10
