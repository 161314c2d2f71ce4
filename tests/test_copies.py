"""Copies of networks whose weights are computed at each forward."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import spequant
from spequant.copies import copied
from spequant.methods import Distill
from spequant.quantizers import PACT, SAWB

COMPUTED = {
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
}


def network(name):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    COMPUTED[name](net[2])
    net(torch.randn(4, 8))
    return net.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("name", COMPUTED)
def test_a_copy_computes_the_same_and_shares_nothing(name):
    net, x = network(name), torch.randn(4, 8)
    other = copied(net)
    assert torch.equal(other(x), net(x))
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    assert not torch.equal(other(x), net(x))
    other(x).sum().backward()
    assert all(p.grad is None for p in net.parameters()) and all(p.grad is not None for p in other.parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("name", COMPUTED)
def test_a_layer_with_such_a_weight_stays_float_and_teaches(name):
    net, x = network(name), torch.randn(16, 8)
    model = spequant.prepare(net, weight=SAWB(2), act=PACT(2), skip=["2"])
    spequant.calibrate(model, [x], samples=16)
    assert isinstance(model[2], nn.Linear)
    losses = Distill(net)(model, (x, torch.arange(16) % 3))
    losses.total.backward()
    assert losses.distill > 0
    spequant.unprepare(model)(x)
