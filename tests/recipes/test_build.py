"""Each field of a recipe arrives where it works; values that make no run are refused by name."""

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from spequant import losses
from spequant.batch_norm import reestimate_batch_norm
from spequant.data import Augment, eval_batches, load_digits, train_batches
from spequant.layers import act_quantizers, weight_quantizers
from spequant.methods import SPEQ, Distill, Retrain, SPEQDistill
from spequant.models import resnet8
from spequant.precision import Mix, Stochastic
from spequant.recipes import RECIPES, run
from spequant.recipes.build import build_quantized, calibrated
from spequant.recipes.check import READS, check
from spequant.recipes.methods import BUILDERS, Given, build_method
from spequant.recipes.overrides import parse_overrides
from spequant.recipes.schema import MethodChoice, Quantization, Recipe, from_json, to_json
from spequant.train import evaluate
from spequant.train.checkpoint import checkpoints, read


def test_the_method_is_the_recipes():
    choice = MethodChoice("speq", 6, 0.3, False, "kl", 3.0, 0.7, "eval", 2)
    given = Given(nn.Linear(2, 2), 5, 10, lambda bits: nn.Linear(2, 2))
    speq = build_method(choice, given)
    assert isinstance(speq, SPEQ) and speq.policy == Stochastic(6, 0.3) and speq.loss is losses.kl
    assert (speq.temperature, speq.weight, speq.batch_norm, speq.passes, speq.seed) == (3.0, 0.7, "eval", 2, 5)
    assert build_method(replace(choice, mix=True), given).policy == Mix()
    assert build_method(replace(choice, loss="cosine"), given).loss is losses.cosine
    assert isinstance(build_method(replace(choice, name="retrain"), given), Retrain)
    distill = build_method(replace(choice, name="distill"), given)
    assert isinstance(distill, Distill) and (distill.loss, distill.temperature, distill.weight) == (losses.kl, 3, 0.7)
    assert isinstance(build_method(replace(choice, name="speq-distill"), given), SPEQDistill)


def test_a_separate_teacher_comes_from_its_file(tmp_path):
    from safetensors.torch import save_file

    teacher = resnet8(in_channels=1)
    save_file({k: v.clone() for k, v in teacher.state_dict().items()}, tmp_path / "teacher.safetensors")
    choice = MethodChoice("distill", teacher=tmp_path / "teacher.safetensors")
    made = build_method(choice, Given(resnet8(in_channels=1), 0, 1, lambda bits: nn.Identity()))
    assert torch.equal(made.teacher.linear.weight, teacher.linear.weight)


def test_quantizers_are_the_recipes():
    train, _ = load_digits()
    batches = list(eval_batches(train, 256))
    choice = Quantization(weight="lsq", weight_bits=3, act="minmax", act_bits=4, end_bits=7, residual_bits=6)
    model = calibrated(resnet8(in_channels=1), choice, batches)
    bits = {name: q.bits for name, q in act_quantizers(model).items()}
    assert bits["conv1"] == bits["linear"] == 7 and bits["layer1.0.conv2"] == 4 and bits["layer1.0.add.branch"] == 6
    assert {type(q).__name__ for q in weight_quantizers(model).values()} == {"LSQ"}
    assert {
        q.shape for q in weight_quantizers(build_quantized(resnet8(), replace(choice, per_channel=True))).values()
    } == {
        (16, 1, 1, 1),
        (32, 1, 1, 1),
        (64, 1, 1, 1),
        (10, 1),
    }
    float_ends = build_quantized(resnet8(), replace(choice, end_bits=None, residual_bits=None))
    assert "conv1" not in act_quantizers(float_ends) and "layer1.0.add.branch" not in act_quantizers(float_ends)

    pact = Quantization()
    clip = {}
    for p in (None, 50.0, 99.0):
        model = calibrated(resnet8(in_channels=1), replace(pact, percentile=p), batches)
        clip[p] = float(act_quantizers(model)["linear"].clip.detach())
    assert clip[50.0] < clip[99.0] and clip[None] not in (clip[50.0], clip[99.0])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            MethodChoice("retrain", temperature=2.0),
            "method.temperature is 2.0, which has no effect on retrain; expected",
        ),
        (MethodChoice("apprentice", weight=2.0), "method.weight is 2.0, which has no effect on apprentice"),
        (MethodChoice("qfd", temperature=2.0), "method.temperature is 2.0, which has no effect on qfd"),
        (MethodChoice("speq", teacher=Path("a")), "method.teacher is PosixPath('a'), which has no effect on speq"),
        (MethodChoice("speq-distill", average=0.9), "method.average is 0.9, which has no effect on speq-distill"),
        (MethodChoice("speq", mix=True, probability=1.0), "has no effect on speq with method.mix; expected 0.5"),
    ],
)
def test_settings_that_a_method_does_not_read_are_refused(choice, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check(replace(Recipe(), method=choice))


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("train", {"momentum": 1.5}, "train.momentum is 1.5; expected 0 or more, below 1"),
        ("train", {"momentum": 0.5, "optimizer": "adamw"}, "train.momentum is 0.5; expected 0.9: adamw has none"),
        ("train", {"lr": math.inf}, "train.lr is inf; expected a number above 0"),
        (
            "train",
            {"freeze_threshold": -1.0},
            "train.freeze_threshold is -1.0; expected a share of steps",
        ),
        (
            "train",
            {"freeze_threshold": 0.1, "freeze_threshold_end": 0.0},
            "train.freeze_threshold_end is 0.0; expected a share of steps",
        ),
        (
            "quant",
            {"weight_bits": None, "act_bits": None, "ewgs": 0.1},
            "quant.ewgs is 0.1; expected 0.0, since",
        ),
        ("network", {"weights": None, "new_head": True}, "network.new_head is True; expected False: random weights"),
        ("data", {"images": 0}, "data.images is 0; expected 1 or more, or None for all"),
        ("data", {"held_out": -1}, "data.held_out is -1; expected 0 or more images"),
        (
            "data",
            {"name": "folder", "augment": True, "auto_augment": "rand-m9", "color_jitter": 0.4},
            "data.color_jitter is 0.4, which has no effect: data.auto_augment stands in for it; expected None",
        ),
    ],
)
def test_settings_without_sense_or_effect_are_refused(part, settings, message):
    recipe = replace(RECIPES["digits-w2a2-speq"](), method=MethodChoice("retrain"))
    check(recipe)
    with pytest.raises(ValueError, match=re.escape(message)):
        check(replace(recipe, **{part: replace(getattr(recipe, part), **settings)}))


@pytest.mark.parametrize("name", ["distill", "speq-distill", "apprentice", "sqakd", "qfd", "gslr", "block-replacement"])
def test_a_teacher_that_has_learned_nothing_is_refused(name):
    recipe = replace(RECIPES["digits-w2a2-speq"](), method=MethodChoice(name))
    check(recipe)
    random = replace(recipe, network=replace(recipe.network, weights=None))
    with pytest.raises(ValueError, match=r"method\.teacher is None and the float network has random weights"):
        check(random)
    with pytest.raises(ValueError, match="has a new head"):
        check(replace(recipe, network=replace(recipe.network, new_head=True)))
    check(replace(random, method=MethodChoice(name, teacher=Path("float"))))
    check(replace(random, method=MethodChoice("apprentice", joint=True)))  # which learns
    check(replace(random, method=MethodChoice("qkd")))


def test_every_method_says_what_it_reads():
    assert set(READS) == set(BUILDERS)
    assert all(hasattr(MethodChoice, name) for names in READS.values() for name in names)


def test_bits_of_single_layers():
    texts = ("layer*=3/4", "layer2.0.conv1=8", "layer3.*=float/2", "linear=4", "conv1=float", "layer1.0.conv1=5/float")
    model = build_quantized(resnet8(in_channels=1), Quantization(overrides=texts))
    act = {name: q.bits for name, q in act_quantizers(model).items()}
    weight = {name: q.bits for name, q in weight_quantizers(model).items()}
    assert "conv1" not in act and "conv1" not in weight and (weight["linear"], act["linear"]) == (4, 4)
    assert (weight["layer1.0.conv2"], act["layer1.0.conv2"]) == (3, 4)
    assert (weight["layer2.0.conv1"], act["layer2.0.conv1"]) == (8, 8)
    assert "layer3.0.conv1" not in weight and act["layer3.0.conv1"] == 2
    assert weight["layer1.0.conv1"] == 5 and "layer1.0.conv1" not in act
    assert {type(q).__name__ for n, q in act_quantizers(model).items() if n.startswith("layer2")} == {"PACT"}
    last = parse_overrides(["a=2", "*=4", "a=3/float"])
    assert list(last.items()) == [("*", 4), ("a", (3, None))]
    again = from_json(to_json(replace(Recipe(), quant=Quantization(overrides=texts))))
    assert again.quant.overrides == texts


@pytest.mark.parametrize(
    "text", ["conv1", "conv1=", "=3", "conv1=9", "conv1=0", "conv1=2/3/4", "conv1=a/3", "conv1=12"]
)
def test_bits_that_make_none_are_named(text):
    with pytest.raises(ValueError, match=f"quant.overrides has {text!r}; expected PATTERN=BITS"):
        check(replace(Recipe(), quant=Quantization(overrides=(text,))))


def test_overrides_of_a_float_network_have_no_effect():
    floating = Quantization(weight_bits=None, act_bits=None, overrides=("conv1=3",))
    with pytest.raises(ValueError, match="a float network has no bits to change"):
        check(replace(Recipe(), quant=floating, method=MethodChoice("retrain")))
    with pytest.raises(ValueError, match="pattern 'conv9' matches no layer"):
        build_quantized(resnet8(), Quantization(overrides=("conv9=3",)))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("train", "epochs", 0),
        ("train", "batch_size", 0),
        ("train", "accumulate", 0),
        ("train", "accumulate", 3),
        ("train", "freeze_threshold_end", 0.1),
        ("method", "high_bits", 2),
        ("train", "lr", -1.0),
        ("train", "weight_decay", -1.0),
        ("train", "range_lr", -0.1),
        ("train", "clip_norm", 0.0),
        ("train", "threads", 0),
        ("train", "seed", -1),
        ("train", "device", "foo"),
        ("train", "checkpoint_every", 0),
        ("quant", "percentile", 0.0),
        ("quant", "act_bits", None),
        ("data", "measure_every", 0),
    ],
)
def test_values_that_make_no_run_are_refused_by_name(part, field, value, tmp_path):
    recipe = RECIPES["digits-w2a2-speq"]()
    check(recipe)
    with pytest.raises(ValueError, match=rf"{part}\.{field} is {value!r}.*expected"):
        run(replace(recipe, **{part: replace(getattr(recipe, part), **{field: value})}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def trained(tmp_path, name, **train):
    recipe = RECIPES["digits-w2a2-retrain"]()
    recipe = replace(recipe, network=replace(recipe.network, weights=None), data=replace(recipe.data, augment=True))
    from spequant.recipes import load_run

    run(replace(recipe, train=replace(recipe.train, epochs=1, **train)), tmp_path / name)
    return load_run(tmp_path / name)


def test_momentum_augmentation_and_batch_norm_measured_anew_take_part(tmp_path, monkeypatch):
    _, model, _ = trained(tmp_path, "run")
    _, without, _ = trained(tmp_path, "without", momentum=0.0)
    assert not torch.equal(model.conv1.layer.weight, without.conv1.layer.weight)
    train, _ = load_digits()
    seen = []
    runs = sys.modules["spequant.recipes.run"]  # the package's attribute of that name is the function
    monkeypatch.setattr(runs, "reestimate_batch_norm", lambda model, batches: seen.extend(batches))
    _, stale, _ = trained(tmp_path, "stale")
    assert torch.equal(stale.conv1.layer.weight, model.conv1.layer.weight)
    assert not torch.allclose(stale.bn1.running_mean, model.bn1.running_mean, rtol=1e-3)
    plain = next(train_batches(train, 512, seed=0, epoch=0, augment=None))
    assert torch.equal(seen[0][1], plain[1]) and not torch.equal(seen[0][0], plain[0])  # the same images, augmented


def test_averaged_weights_get_batch_norm_of_their_own(tmp_path):
    _, model, _ = trained(tmp_path, "run", ema=0.8)
    snapshot, _ = read(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    averaged, last = snapshot.part("ema"), snapshot.part("model")
    assert torch.equal(model.conv1.layer.weight, averaged["conv1.layer.weight"])
    assert not torch.equal(averaged["conv1.layer.weight"], last["conv1.layer.weight"])
    found = model.bn1.running_mean.clone()
    train, _ = load_digits()
    batches = train_batches(train, 512, seed=0, epoch=0, augment=Augment())
    reestimate_batch_norm(model, list(batches))
    torch.testing.assert_close(found, model.bn1.running_mean)
    assert not torch.allclose(found, averaged["bn1.running_mean"], rtol=1e-2)
    assert not torch.allclose(found, last["bn1.running_mean"], rtol=1e-2)


def test_evaluation_runs_on_running_statistics():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(2))
    model[1].running_mean.copy_(torch.tensor([0.0, 5.0]))
    x = torch.tensor([[1.0, 3.0], [2.0, 4.0]])  # batch statistics would call one of them class 1
    assert evaluate(model.train(), [(x, torch.tensor([0, 0]))]).accuracy == 100
    assert model.training and torch.equal(model[1].running_mean, torch.tensor([0.0, 5.0]))
