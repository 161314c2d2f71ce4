"""Diagnostics of the layers of a quantized network on one batch."""

import pytest
import torch
from torch import nn

import spequant
from spequant.layers import act_quantizers
from spequant.quantizers import LSQ, PACT, SAWB
from spequant.train import Diagnostics


def test_diagnostics_by_layer():
    model = spequant.prepare(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), weight=LSQ(2), act=PACT(2), ends=2
    )
    x = torch.rand(64, 4)
    spequant.calibrate(model, [x], samples=64)
    look = Diagnostics()
    with torch.no_grad():
        act_quantizers(model)["0"].clip.fill_(0.5)
    row = look(model, x)
    layer = row["layers"]["0"]
    assert layer["clipped"] == pytest.approx(float((x > 0.5).float().mean())) and layer["high"] == 0.5
    assert layer["levels"] == layer["of"] == 4 and layer["changed"] is None
    assert 0 <= row["agreement"] <= 1
    assert look(model, x)["layers"]["0"]["changed"] == 0
    with torch.no_grad():
        model[0].layer.weight.neg_()
    assert look(model, x)["layers"]["0"]["changed"] > 0.5
    assert model.training


def test_tied_weights_are_compared_once():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    tied = spequant.prepare(tied, weight=SAWB(2), act=PACT(2), ends=2)
    x = torch.rand(64, 4)
    spequant.calibrate(tied, [x], samples=64)
    look = Diagnostics()
    look(tied, x)
    with torch.no_grad():
        tied[0].layer.weight.neg_()
    assert look(tied, x)["layers"]["0"]["changed"] > 0.5


def test_two_networks_with_equal_names():
    def network(width):
        layers = nn.Linear(4, width), nn.Linear(width, 4)
        return spequant.prepare(nn.Sequential(*layers), weight=SAWB(2), act=PACT(2), ends=2)

    model, x = nn.Sequential(network(3), network(5)), torch.rand(64, 4)
    spequant.calibrate(model, [x], samples=64)
    look = Diagnostics()
    look(model, x)
    with torch.no_grad():
        model[1][0].layer.weight.neg_()
    changed = [row["changed"] for row in look(model, x)["layers"].values() if "changed" in row]
    assert len(changed) == 4 and sorted(changed)[:3] == [0, 0, 0] and sorted(changed)[3] > 0.5
