"""Biases on integer arithmetic's grid: what makes a network and its integers agree."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from spequant.deploy import Twin, lower, quantize_biases
from spequant.deploy.biases import move
from support.cifar_networks import calibrated_resnet20
from support.integer_networks import prepared, small


def parameters(model):
    return [p.clone() for p in model.parameters()]


def test_with_rounded_biases_the_network_answers_as_its_integers_do():
    x = torch.randn(64, 1, 8, 8)
    model = prepared(small(), x)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data += 0.5 * torch.randn_like(module.bias)

    def differing():
        with torch.no_grad():
            return float(((Twin(lower(model, x[:1]))(x) - model(x)).abs().amax(1) > 1e-3).float().mean())

    assert differing() > 0.25
    quantize_biases(model, x[:1])
    once = parameters(model)
    assert differing() <= 1 / 64  # a tie
    quantize_biases(model, x[:1])
    assert all(torch.equal(a, b) for a, b in zip(once, model.parameters(), strict=True))


@pytest.mark.slow
def test_rounding_biases_is_what_makes_the_network_and_its_integers_agree(shared_data):
    """Without it one code in ten thousand of the first layer is another one, and by the last layer one in ten."""
    model, test = calibrated_resnet20(shared_data, 2)
    model.eval()
    x = test.normalise(test.images[:200])

    def agreement():
        with torch.no_grad():
            return float((Twin(lower(model, x[:1]))(x).argmax(1) == model(x).argmax(1)).float().mean())

    assert agreement() < 0.95
    quantize_biases(model, x[:1])
    once = parameters(model)
    assert agreement() >= 0.99
    quantize_biases(model, x[:1])
    assert all(torch.equal(a, b) for a, b in zip(once, model.parameters(), strict=True))


def test_a_bias_is_moved_where_it_is():
    """On a device that this machine lacks: fake tensors know theirs."""
    with FakeTensorMode():
        bias = torch.zeros(3, device="cuda")
        move(bias, torch.ones(3, dtype=torch.float64))
        assert bias.device.type == "cuda"
    bias = torch.tensor([1.0, 2.0])
    move(bias, torch.tensor([0.5, -1.0], dtype=torch.float64))
    assert bias.tolist() == [1.5, 1.0]


def test_biases_of_a_run_are_integers(digits_run):
    rows = [json.loads(line) for line in (digits_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["integer"] for row in rows if row["kind"] == "biases"] == [True]
