"""How a recipe quantizes: quantizers, bits of single layers, ranges from data."""

from dataclasses import replace

import pytest

from spequant.app.recipes import RECIPES
from spequant.app.recipes.quantization import Quantization, parse_overrides
from spequant.data import eval_batches, load_digits
from spequant.layers import act_quantizers, weight_quantizers
from spequant.models import CifarResNet, resnet8
from spequant.quantizers import LSQ, PACT, SAWB, APoT, LSQPlus, MinMax


def small() -> CifarResNet:
    return CifarResNet(1, in_channels=1, widths=(8, 8, 16))


def test_quantizers_are_the_recipes():
    train, _ = load_digits()
    batches = list(eval_batches(train.part(slice(0, 128)), 64))
    settings = {"weight": LSQ.Settings(), "weight_bits": 3, "act": MinMax.Settings(percentile=99.0), "act_bits": 4}
    choice = Quantization(**settings, end_bits=7, residual_bits=6)
    model = choice.calibrated(small(), batches)
    acts = act_quantizers(model)
    bits = {name: q.bits for name, q in acts.items()}
    assert bits["conv1"] == bits["linear"] == 7 and bits["layer1.0.conv2"] == 4 and bits["layer1.0.add.branch"] == 6
    assert {type(q).__name__ for q in weight_quantizers(model).values()} == {"LSQ"}
    assert (acts["layer1.0.conv2"].percentile, acts["conv1"].percentile) == (99.0, 100.0)  # ends have the default
    channels = replace(choice, per_channel=True).build(resnet8())
    assert {q.shape for q in weight_quantizers(channels).values()} == {
        (16, 1, 1, 1),
        (32, 1, 1, 1),
        (64, 1, 1, 1),
        (10, 1),
    }
    float_ends = replace(choice, end_bits=None, residual_bits=None).build(resnet8())
    assert "conv1" not in act_quantizers(float_ends) and "layer1.0.add.branch" not in act_quantizers(float_ends)
    network = small()
    assert Quantization(weight_bits=None, act_bits=None).calibrated(network, batches) is network


def test_clips_are_at_the_recipes_percentile():
    train, _ = load_digits()
    batches = list(eval_batches(train.part(slice(0, 128)), 128))
    network, clip = small(), {}
    for p in (None, 50.0, 99.0):
        model = Quantization(percentile=p).calibrated(network, batches)
        clip[p] = float(act_quantizers(model)["linear"].clip.detach())
    assert clip[50.0] < clip[99.0] and clip[None] not in (clip[50.0], clip[99.0])


def test_the_penalty_on_clips_comes_from_the_recipe():
    choice = replace(RECIPES["digits-w2a2-speq"]().quant, act=PACT.Settings(decay=0.5))
    model = choice.build(small())
    decays = {(q.bits, q.decay) for q in act_quantizers(model).values() if isinstance(q, PACT)}
    assert decays == {(2, 0.5), (8, 2e-4)}  # ends and addends keep their own


def test_options_of_a_weight_quantizer_reach_it():
    choice = Quantization(weight=SAWB.Settings(clip_gradient=True))
    quantizers = weight_quantizers(choice.build(small()))
    assert {(q.bits, q.clip_gradient) for q in quantizers.values()} == {(2, True), (8, False)}


def test_the_backward_of_weights_and_activations_is_scaled_where_the_recipe_says_so():
    lsq = {"weight": LSQ.Settings(), "act": LSQ.Settings()}
    for d in (0.0, 0.5):
        model = Quantization(**lsq, ewgs=d).build(small())
        quantizers = [*weight_quantizers(model).values(), *act_quantizers(model).values()]
        assert {q.ewgs for q in quantizers} == {d}


def test_scales_are_powers_of_two_everywhere_where_the_recipe_says_so():
    choice = Quantization(power_of_two=True, depthwise="lsq", overrides=("layer1.0.conv1=5/6",))
    model = replace(choice, depthwise=None).build(small())
    quantizers = [*weight_quantizers(model).values(), *act_quantizers(model).values()]
    assert all(q.power_of_two for q in quantizers) and choice.at(4).power_of_two
    assert {q.bits for q in quantizers} == {2, 5, 6, 8}
    with pytest.raises(ValueError, match="power_of_two is True; expected False"):
        Quantization(power_of_two=True, weight_bits=None, act_bits=None)


def test_bits_of_single_layers():
    texts = ("layer*=3/4", "layer2.0.conv1=8", "layer3.*=float/2", "linear=4", "conv1=float", "layer1.0.conv1=5/float")
    model = Quantization(overrides=texts).build(small())
    act = {name: q.bits for name, q in act_quantizers(model).items()}
    weight = {name: q.bits for name, q in weight_quantizers(model).items()}
    assert "conv1" not in act and "conv1" not in weight and (weight["linear"], act["linear"]) == (4, 4)
    assert (weight["layer1.0.conv2"], act["layer1.0.conv2"]) == (3, 4)
    assert (weight["layer2.0.conv1"], act["layer2.0.conv1"]) == (8, 8)
    assert "layer3.0.conv1" not in weight and act["layer3.0.conv1"] == 2
    assert weight["layer1.0.conv1"] == 5 and "layer1.0.conv1" not in act
    assert {type(q).__name__ for n, q in act_quantizers(model).items() if n.startswith("layer2")} == {"PACT"}
    with pytest.raises(ValueError, match="'conv9' matches no layer"):
        Quantization(overrides=("conv9=3",)).build(small())


def test_at_other_bits_weights_take_a_quantizer_that_reaches_so_far():
    choice = Quantization(weight=APoT.Settings(), weight_bits=3)
    assert (choice.at(4).weight, choice.at(4).act_bits) == (APoT.Settings(), 4)
    assert choice.at(8).weight == LSQ.Settings() and choice.at(8).weight_bits == 8


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weight": APoT.Settings(), "weight_bits": 8}, "bits is 8; expected 2 to 6 for APoT"),
        ({"weight": LSQPlus.Settings()}, "LSQPlus .* for activations"),
        ({"act": SAWB.Settings()}, r"quant\.act is SAWB, which quantizes only weights"),
    ],
)
def test_quantizers_that_do_not_fit_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Quantization(**settings)


def test_the_last_override_of_a_pattern_stands():
    last = parse_overrides(["a=2", "*=4", "a=3/float"])
    assert list(last.items()) == [("*", 4), ("a", (3, None))]
    assert parse_overrides(["b=float", "c=float/8", "d=e=1"]) == {"b": None, "c": (None, 8), "d=e": 1}


@pytest.mark.parametrize(
    "text", ["conv1", "conv1=", "=3", "conv1=9", "conv1=0", "conv1=2/3/4", "conv1=a/3", "conv1=12"]
)
def test_overrides_that_make_no_bits_are_named(text):
    with pytest.raises(ValueError, match=f"quant.overrides has {text!r}; expected PATTERN=BITS"):
        Quantization(overrides=(text,))
