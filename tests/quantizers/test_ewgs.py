"""EWGS: its gradient against the literal twin, and the quantizers that it reaches or refuses."""

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from reference import quantizers as literal
from spequant.functional import fake_quantize
from spequant.quantizers import LSQ, PACT, APoT, DoReFa, set_ewgs
from spequant.quantizers.base import level_tensor
from support.quantizing import close, tensors


@pytest.mark.parametrize("low", [0.0, -1.2])
@pytest.mark.parametrize("inner", [False, True])
def test_the_gradient(low, inner):
    x, leaf, grad = tensors()
    high, levels, scaling = torch.tensor(1.2), level_tensor(4 if low == 0 else 3), 0.3
    bottom = None if low == 0 else torch.tensor(low)
    y = fake_quantize(leaf, bottom, high, levels, inner=inner, ewgs=scaling)
    assert torch.equal(y, fake_quantize(leaf, bottom, high, levels))  # the forward does not change
    y.backward(grad)
    expected = literal.ewgs(x, grad.double().numpy(), low, 1.2, int(levels), scaling)
    close(leaf.grad, expected)
    straight = grad.numpy() * (leaf.grad.numpy() != 0)
    assert np.abs(expected - straight).max() > 0.05  # the gradient is not straight-through


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))


def test_it_reaches_every_quantizer_and_refuses_those_without_equal_steps():
    x = torch.randn(8, 3, 8, 8)
    model = spequant.prepare(network(), weight=DoReFa(2), act=LSQ(2))
    spequant.calibrate(model, [x], samples=8)

    def gradients():
        model.zero_grad()
        model(x).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    before = gradients()
    set_ewgs(model, 0.5)
    after = gradients()
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert {n for n in before if n.endswith("layer.weight")} <= set(changed)
    set_ewgs(model, 0.0)
    assert all(torch.equal(before[n], g) for n, g in gradients().items())
    with pytest.raises(ValueError, match="scaling is -1"):
        set_ewgs(model, -1)
    with pytest.raises(ValueError, match="no quantizer"):
        set_ewgs(network(), 0.1)
    with pytest.raises(ValueError, match="APoT"):
        set_ewgs(spequant.prepare(network(), weight=APoT(3), act=PACT(2)), 0.1)
