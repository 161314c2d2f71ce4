"""A small residual network whose sums are read twice."""

import torch
from torch import nn

import spequant
from spequant.deploy import lower, quantize_biases
from spequant.models.residual import ResidualAdd
from spequant.quantizers import PACT, SAWB

X = torch.randn(16, 1, 12, 12, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A first layer and a sum that are read on few codes by a layer, and on many by an addition."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.last, self.sum, self.sums = nn.MaxPool2d(2), nn.Linear(4 * 25, 3), ResidualAdd(), ResidualAdd()

    def forward(self, x):
        y = self.pool(torch.relu(self.first(x)))
        y = torch.relu(self.sum(self.b(torch.relu(self.a(y))), y))
        y = torch.relu(self.sums(self.d(torch.relu(self.c(y))), y))
        return self.last(torch.flatten(y, 1))


def prepared(bits=2, act=PACT, network=Residual, **options):
    """Calibrated, its ranges as they come."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = spequant.prepare(network(), weight=SAWB(bits), act=act(bits), **options).eval()
        spequant.calibrate(model, [X], samples=len(X))
    return model


def program_of(model):
    quantize_biases(model, X[:1])
    return lower(model, X[:1])
