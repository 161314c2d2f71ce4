"""Which quantizer each layer gets: ends, patterns, ties, ranges per channel, and choices that are refused."""

import pytest
import torch
from torch import nn

import spequant
from spequant.layers import act_quantizers, weight_quantizers
from spequant.quantizers import LSQ, PACT, SAWB, LeastSquares, MinMax


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def bits(model):
    weights, acts = weight_quantizers(model), act_quantizers(model)
    return {
        name: (weights[name].bits if name in weights else None, acts[name].bits if name in acts else None)
        for name in weights | acts
    }


def test_first_and_last_layer_at_8_bits_and_choices_by_pattern():
    prepare = lambda **k: bits(spequant.prepare(mlp(), weight=SAWB(2), act=PACT(2), **k))  # noqa: E731
    assert prepare() == {"0": (8, 8), "2": (2, 2), "4": (8, 8)}
    assert prepare(ends=None) == {"2": (2, 2)}
    assert prepare(ends=(4, None)) == {"0": (4, None), "2": (2, 2), "4": (4, None)}
    assert prepare(skip=["0"]) == {"2": (8, 8), "4": (8, 8)}
    assert prepare(overrides={"*": 3, "2": (4, 5)}) == {"0": (3, 3), "2": (4, 5), "4": (3, 3)}
    assert prepare(overrides={"2": None}) == {"0": (8, 8), "4": (8, 8)}
    model = spequant.prepare(mlp(), weight=SAWB(2), act=PACT(2), overrides={"4": (MinMax(6), LSQ(5))})
    assert isinstance(model[4].weight_quantizer, MinMax) and isinstance(model[4].act_quantizer, LSQ)


def test_weights_only_and_activations_only():
    weights = spequant.prepare(mlp(), weight=SAWB(2), act=None)
    assert bits(weights) == {"0": (8, None), "2": (2, None), "4": (8, None)}
    acts = spequant.prepare(mlp(), weight=None, act=PACT(2))
    assert bits(acts) == {"0": (None, 8), "2": (None, 2), "4": (None, 8)}
    for model in (weights, acts):
        spequant.calibrate(model, [torch.randn(64, 4)], samples=64)


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[1].weight
    return model


def test_tied_weights_with_different_choices_are_refused_by_name():
    with pytest.raises(ValueError, match="1 and 2 have one weight"):
        spequant.prepare(tied(), weight=SAWB(2), act=PACT(2), overrides={"2": 8})
    assert spequant.prepare(tied(), weight=SAWB(2), act=PACT(2), overrides={"2": (2, 8)})


class Scaled(PACT):
    def __init__(self, bits, scale=1.0, **settings):
        super().__init__(bits, **settings)
        self.scale = scale


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"act": SAWB(2)}, ValueError, "SAWB was given for an activation"),
        ({"act": LeastSquares(2)}, ValueError, "LeastSquares was given for an activation"),
        ({"skip": "0"}, ValueError, r"skip is '0'; expected a list"),
        ({"overrides": {"0": (4,)}}, ValueError, r"\(4,\) was given; expected bits, a pair"),
        ({"act": Scaled(2, scale=5.0)}, TypeError, r"config\(\) lacks scale"),
    ],
)
def test_choices_that_would_be_ignored_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        spequant.prepare(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), **{"weight": SAWB(2), "act": PACT(2), **arguments}
        )


def test_transposed_convolutions_per_channel():
    for rule in (spequant.quantizers.percentile(99.0), spequant.quantizers.least_squares):
        model = spequant.prepare(
            nn.Sequential(nn.ConvTranspose2d(8, 1, 3)), weight=LSQ(4), act=None, ends=4, per_channel=True
        )
        spequant.calibrate(model, [torch.rand(64, 8, 4, 4)], samples=64, rule=rule)
        assert model[0].weight_quantizer.step.shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="output channels of its 2 groups in one axis"):
        spequant.prepare(
            nn.Sequential(nn.ConvTranspose2d(8, 8, 3, groups=2)), weight=LSQ(4), act=None, per_channel=True, ends=4
        )
