"""The weight of a quantized layer as others see it: its form is readable, its values are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.quantizers import PACT, SAWB


def test_attributes_of_the_layer_can_be_read_but_not_the_values_of_its_weight():
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 3)), weight=SAWB(2), act=PACT(2))
    assert model[0].out_features == 3 and model[0].bias.shape == (3,)
    assert model[0].weight.shape == (3, 4)
    with pytest.raises(AttributeError, match=r"^0 is quantized.*skip=\['0'\]"):
        _ = model[0].weight.data
    with pytest.raises(AttributeError, match="nothing"):
        _ = model[0].nothing


def test_freezing_the_weight_freezes_it(mlp):
    mlp[2].weight.requires_grad = False
    mlp[0].weight.requires_grad_(False)
    assert not mlp[2].weight.requires_grad and not mlp[2].layer.weight.requires_grad
    mlp(torch.randn(4, 8)).sum().backward()
    assert mlp[2].layer.weight.grad is None and mlp[0].weight.grad is None
    assert mlp[4].weight.grad is mlp[4].layer.weight.grad and mlp[4].weight.grad.abs().sum() > 0


def test_weight_data_gradient_and_bias_are_written_to_the_float_layer(mlp):
    weight, bias = torch.randn(8, 8), nn.Parameter(torch.zeros(8))
    mlp[2].weight.data = weight
    mlp[2].bias = bias
    assert torch.equal(mlp[2].layer.weight, weight) and mlp[2].layer.bias is bias
    mlp[2].bias = None
    assert mlp[2].layer.bias is None and mlp[2].bias is None
    mlp[2].weight = new = nn.Parameter(torch.ones(8, 8))
    assert mlp[2].layer.weight is new
    mlp[0].register_parameter("bias", None)
    assert mlp[0].layer.bias is None and mlp[0](torch.zeros(1, 8)).abs().sum() == 0
    mlp[4].weight.grad = torch.ones(3, 8)
    assert torch.equal(mlp[4].layer.weight.grad, torch.ones(3, 8))
    mlp[2].weight = mlp[2].weight


@pytest.mark.parametrize(
    ("value", "error"),
    [(None, ValueError), (torch.ones(8, 8), ValueError), (nn.Parameter(torch.ones(3, 8)), ValueError)],
)
def test_a_weight_that_cannot_be_set_is_refused(mlp, value, error):
    with pytest.raises(error, match=r"^2: its weight.*\(8, 8\)"):
        mlp[2].weight = value


def test_tying_weights_after_prepare_is_refused(mlp):
    with pytest.raises(ValueError, match=r"^2: its weight .* of 0"):
        mlp[2].weight = mlp[0].weight
    with pytest.raises(ValueError, match=r"^2: its weight .*\(3, 8\)"):
        mlp[2].weight.data = torch.ones(3, 8)


USES = {
    "times": lambda w: w * 2,
    "times from the left": lambda w: 2 * w,
    "minus": lambda w: -w,
    "power": lambda w: w**2,
    "product": lambda w: w @ torch.ones(8),
    "product from the left": lambda w: torch.ones(8) @ w,
    "item": lambda w: w[0],
    "set item": lambda w: w.__setitem__(0, 0.0),
    "iterate": list,
    "in": lambda w: 1.0 in w,
    "equal": lambda w: w == 0,
    "greater": lambda w: w > 0,
    "truth": bool,
    "number": float,
    "added to": lambda w: torch.ones(8, 8).add_(w),
    "in place": lambda w: w.mul_(2),
    "method": lambda w: w.abs(),
    "detached": lambda w: w.detach(),
    "data in place": lambda w: w.data.normal_(),
    "initialised": nn.init.xavier_uniform_,
    "norm": torch.linalg.vector_norm,
    "function": lambda w: F.linear(torch.ones(1, 8), w),
    "numpy": lambda w: __import__("numpy").asarray(w),
    "stacked": lambda w: torch.stack([w, w]),
    "other attribute": lambda w: setattr(w, "note", 1),
    "transposed": lambda w: w.T,
}


@pytest.mark.parametrize("use", USES)
def test_using_the_values_of_the_weight_is_refused_by_the_name_of_the_layer(mlp, use):
    before = mlp[2].layer.weight.detach().clone()
    with pytest.raises(AttributeError, match=r"^2 is quantized"):
        USES[use](mlp[2].weight)
    assert torch.equal(mlp[2].layer.weight, before)
