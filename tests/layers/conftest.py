"""A small prepared network."""

import pytest
import torch
from torch import nn

import spequant
from spequant.quantizers import PACT, SAWB


@pytest.fixture
def mlp():
    """A calibrated network of two linear layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model = spequant.prepare(net, weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [torch.randn(64, 8)], samples=64)
    return model
