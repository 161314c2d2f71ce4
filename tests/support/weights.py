"""Weights of many distributions and shapes: rows of values that share a range, for what must hold of every weight."""

import math

import torch
from torch import Tensor

SPREAD = {
    "gauss": lambda r, n: torch.randn(r, n),
    "uniform": lambda r, n: torch.rand(r, n) * 2 - 1,
    "laplace": lambda r, n: torch.distributions.Laplace(0.0, 1.0).sample((r, n)),
    "cauchy": lambda r, n: torch.tan(math.pi * (torch.rand(r, n) - 0.5) * 0.999),
    "log-normal": lambda r, n: torch.exp(2 * torch.randn(r, n)) * torch.randn(r, n).sign(),
    "log-uniform": lambda r, n: torch.exp(12 * torch.rand(r, n)) * torch.randn(r, n).sign(),
    "two lumps": lambda r, n: torch.randn(r, n).sign() + 0.1 * torch.randn(r, n),
    "positive": lambda r, n: torch.rand(r, n) / 2 + 0.5,
    "shifted": lambda r, n: torch.randn(r, n) + 3,
    "half zero": lambda r, n: torch.randn(r, n) * (torch.rand(r, n) < 0.5),
    "sparse": lambda r, n: torch.randn(r, n) * (torch.rand(r, n) < 0.05),
    "two scales": lambda r, n: torch.randn(r, n) * torch.where(torch.rand(r, n) < 0.1, 30.0, 1.0),
    "an outlier of 10": lambda r, n: _first(torch.randn(r, n), 10.0),
    "an outlier of 1000": lambda r, n: _first(torch.randn(r, n), -1000.0),
}
"""{name: (ranges, values of each) -> weights that fill what they cover}"""

LUMPED = {
    "all equal": lambda r, n: torch.full((r, n), 0.3),
    "plus or minus one": lambda r, n: torch.randn(r, n).sign(),
    "two values": lambda r, n: torch.where(torch.rand(r, n) < 0.5, 1.0, -0.7),
    "any two values": lambda r, n: torch.where(torch.rand(r, n) < 0.5, torch.randn(r, 1), torch.randn(r, 1)),
    "narrow lumps": lambda r, n: torch.randn(r, n).sign() + 0.01 * torch.randn(r, n),
    "on a grid of 15 levels": lambda r, n: torch.randint(-7, 8, (r, n)).float(),
    "on a grid of 201 levels": lambda r, n: torch.randint(-100, 101, (r, n)).float(),
    "one is not zero": lambda r, n: _first(torch.zeros(r, n), 0.7),
}
"""The same, of weights that are few different numbers, or nearly: there are grids that hold them, and others."""


def _first(w: Tensor, value: float) -> Tensor:
    w[:, 0] = value
    return w
