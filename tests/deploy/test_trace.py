"""What traced operations are read as, and how those without an integer form are named."""

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import lower
from spequant.quantizers import PACT, SAWB, DoReFa


class Deciding(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.last, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), kind

    def forward(self, x):
        y = self.first(x)
        if self.kind == "branch" and y.sum() > 0:
            return self.last(y)
        if self.kind == "sort":
            y = torch.sort(y)[0]
        if self.kind == "number":
            y = y + 1
        if self.kind == "number first":
            y = 2 * y
        if self.kind == "scaled sum":
            y = torch.add(y, x, alpha=2)
        if self.kind == "flatten":
            y = torch.flatten(y, 0).reshape(-1, 4)
        if self.kind == "tensor bound":
            y = torch.clamp(y, x, x + x)
        return self.last(y)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("branch", "Deciding cannot be traced"),
        ("sort", "sort has no integer form"),
        ("number", "^add: .* number"),
        ("number first", "^mul: .* number"),
        ("scaled sum", "^add: .*alpha"),
        ("flatten", "^flatten: .* from 0 to -1"),
        ("tensor bound", "^clamp.*: .* integer form"),
    ],
)
def test_what_has_no_integer_form_is_named(kind, message):
    x = torch.rand(64, 4)
    model = spequant.prepare(Deciding(kind), weight=SAWB(2), act=PACT(2), residual=None)
    spequant.calibrate(model, [x], samples=64, reestimate=False)
    with pytest.raises(ValueError, match=message):
        lower(model, x[:1])


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([nn.ConvTranspose2d(3, 3, 1), nn.Conv2d(3, 2, 1)], {}, "^0: ConvTranspose2d"),
        ([nn.Conv2d(3, 3, 1), nn.Flatten(2), nn.Conv1d(3, 2, 1)], {}, "^1: .* from 2 to -1"),
        ([nn.Conv2d(3, 3, 1), nn.MaxPool2d(2, dilation=2), nn.Conv2d(3, 2, 1)], {}, "^1: .* dilation"),
        (
            [nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 2, 1)],
            {},
            "^0: padding_mode 'reflect'",
        ),
        (
            [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)],
            {"weight": DoReFa(2)},
            r"its 256 levels .* codes up to \d+, .* int8",
        ),
        ([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)], {"weight": None}, "^1: .*weights are float.* act=None"),
        ([nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 1)], {}, "^1: GELU"),
    ],
)
def test_layers_without_an_integer_form_are_named(layers, options, message):
    x = torch.rand(64, 3, 4, 4)
    model = spequant.prepare(nn.Sequential(*layers), **({"weight": SAWB(2), "act": PACT(2)} | options))
    spequant.calibrate(model, [x], samples=64)
    with pytest.raises(ValueError, match=message):
        lower(model, x[:1])


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 3, 3), nn.Linear(1, 2)

    def forward(self, x):
        return self.b(torch.mean(self.a(x), (-2, -1), keepdim=True).flatten(1))


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)), (8, 4, 6), "^0: .* of 3"),
        (Mean, (8, 2, 6), "^mean: .* on 3 dimensions .* expected 4"),
    ],
)
def test_shapes_that_have_no_form_are_named(network, shape, message):
    x = torch.randn(shape)
    model = spequant.prepare(network(), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [x], samples=8, reestimate=False)
    with pytest.raises(ValueError, match=message):
        lower(model, x[:1])
