"""Small networks with residual additions, in every form in which they are written."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

FORMS = {
    "x + f(x)": lambda m, x: x + m.f(x),
    "f(x) + g(x)": lambda m, x: m.f(x) + m.g(x),
    "torch.add": lambda m, x: torch.add(m.f(x), m.g(x)),
    "torch.add, by keyword": lambda m, x: torch.add(input=m.f(x), other=m.g(x)),
    ".add": lambda m, x: m.f(x).add(m.g(x)),
    "+=": lambda m, x: m.iadd(m.f(x), x),
    ".add_": lambda m, x: m.f(x).add_(x),
    "dropped branch": lambda m, x: x + m.drop(m.f(x)),
    "dropped shortcut": lambda m, x: m.drop(x) + m.f(x),
    "in a sequence": lambda m, x: m.sequence(x) + x,
    "called twice": lambda m, x: x + m.f(m.f(x)),
    "function": lambda m, x: x + m.f(x).sin(),
    "parameter": lambda m, x: m.f(x) + m.shift,
    "number": lambda m, x: m.f(x) + 1.0,
    "to its own sum": lambda m, x: x + m.f(x) + m.g(x),
    "scores": lambda m, x: m.f(x).flatten(2) + m.g(x).flatten(2),
}


class Block(nn.Module):
    """A stem, one block of the given form, a head."""

    def __init__(self, form, drop=None):
        super().__init__()
        self.form, self.drop = form, drop
        used = FORMS[form].__code__.co_names
        self.stem = nn.Conv2d(3, 4, 1)
        self.f = nn.Conv2d(4, 4, 3, padding=1) if "f" in used else None
        self.g = nn.Conv2d(4, 4, 1) if "g" in used else None
        inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.sequence = nn.Sequential(inner) if "sequence" in used else None
        self.shift, self.head = nn.Parameter(torch.ones(1)), nn.Linear(4, 3)

    def iadd(self, a, b):
        a += b
        return a

    def forward(self, x):
        y = FORMS[self.form](self, self.stem(x))
        return self.head(y.flatten(2).relu().mean(2))


def residual_network():
    """torchvision's blocks, whose activation is one module, in place."""
    short = nn.Sequential(nn.Conv2d(8, 12, 1, 2), nn.BatchNorm2d(12))
    blocks = BasicBlock(8, 8), BasicBlock(8, 8), BasicBlock(8, 12, 2, short)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
