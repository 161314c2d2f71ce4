"""Depthwise convolutions: which quantizer their few weights a channel get, and how well it fits them."""

import pytest
import torch
from torch import nn

import spequant
from spequant.app.recipes.quantization import Quantization
from spequant.layers import weight_quantizers
from spequant.models import mobilenet_v2
from spequant.quantizers import LSQ, PACT, SAWB, DoReFa, LeastSquares, MinMax


def network(depthwise=None):
    depthwise = depthwise or nn.Conv2d(8, 8, 3, padding=1, groups=8)
    return nn.Sequential(nn.Conv2d(3, 8, 1), depthwise, nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 4, 1))


def kinds(**options):
    model = spequant.prepare(network(), **({"weight": SAWB(3), "act": PACT(3)} | options))
    return {name: (type(q), q.bits, q.shape) for name, q in weight_quantizers(model).items()}


def test_depthwise_weights_get_least_squares_a_channel_where_the_others_get_sawb():
    assert kinds() == {
        "0": (SAWB, 8, ()),
        "1": (LeastSquares, 3, (8, 1, 1, 1)),
        "2": (SAWB, 3, ()),  # grouped, not depthwise
        "3": (SAWB, 8, ()),
    }


@pytest.mark.parametrize("kind", [LSQ, DoReFa, MinMax, LeastSquares])
def test_other_quantizers_stay_with_one_range_a_channel(kind):
    assert kinds(weight=kind(3))["1"] == (kind, 3, (8, 1, 1, 1))


def test_the_keyword_chooses_another_and_overrides_and_ends_win():
    assert kinds(depthwise=LSQ(4))["1"] == (LSQ, 4, (8, 1, 1, 1))
    assert kinds(overrides={"1": 5})["1"] == (LeastSquares, 5, (8, 1, 1, 1))
    assert kinds(depthwise=LSQ(4), overrides={"1": 5})["1"] == (LSQ, 5, (8, 1, 1, 1))
    assert kinds(overrides={"1": (SAWB(3), 3)})["1"] == (SAWB, 3, (8, 1, 1, 1))
    assert "1" not in kinds(overrides={"1": None})
    assert kinds(skip=["0"])["1"] == (LeastSquares, 8, (8, 1, 1, 1))  # now the first layer
    assert kinds(skip=["0"], ends=(MinMax(8), 8))["1"] == (MinMax, 8, (8, 1, 1, 1))


def test_a_keyword_without_effect_is_refused():
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))
    for model, options, message in [
        (plain, {"depthwise": LSQ(2)}, "no layer outside skip is a depthwise convolution"),
        (network(), {"depthwise": LSQ(2), "weight": None}, "weight is None"),
        (network(), {"depthwise": 2}, "depthwise is 2; expected a quantizer"),
    ]:
        with pytest.raises(ValueError, match=message):
            spequant.prepare(model, **({"weight": SAWB(2), "act": PACT(2)} | options))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 16, 3, padding=1, groups=8),
        nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8),
        nn.ConvTranspose2d(8, 16, 3, padding=1, groups=8),
    ],
)
@pytest.mark.parametrize("depthwise", [None, LSQ(2)])
def test_multiplied_and_transposed_ones(layer, depthwise):
    inputs = layer.weight.shape[0]
    tail = nn.Conv2d(layer.out_channels, 8, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer, tail)
    model = spequant.prepare(model, weight=SAWB(2), act=PACT(2), depthwise=depthwise)
    x = torch.randn(64, 3, 6, 6)
    spequant.calibrate(model, [x], samples=64)
    q = model[1].weight_quantizer
    assert q.shape == (inputs, 1, 1, 1) and model(x).isfinite().all()
    rows = q(layer.weight).detach().flatten(1)
    assert all(len(row.unique()) <= 4 for row in rows) and len(rows.unique()) > 4


def test_mobilenet_v2_and_the_recipes_field():
    model = Quantization().build(mobilenet_v2())
    found = [q for q in weight_quantizers(model).values() if isinstance(q, LeastSquares)]
    assert len(found) == 17 and all(q.bits == 2 and not q.zero and q.shape[0] > 1 for q in found)
    model = Quantization(weight_bits=4, depthwise="lsq").build(mobilenet_v2())
    assert sum(isinstance(q, LSQ) and q.bits == 4 for q in weight_quantizers(model).values()) == 17


def test_mobilenet_v2_has_signed_bottlenecks_and_clips_within_relu6():
    model = spequant.prepare(mobilenet_v2(), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [torch.randn(8, 3, 16, 16)], samples=8, reestimate=False)
    block = model.blocks[3]
    assert block.expand.act_quantizer.signed and not block.depthwise.act_quantizer.signed
    assert float(block.depthwise.act_quantizer.clip.detach()) <= 6
