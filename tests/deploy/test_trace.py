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
        if self.kind == "number divided":
            y = 2 / y
        if self.kind == "scaled sum":
            y = torch.add(y, x, alpha=2)
        if self.kind == "flatten":
            y = torch.flatten(y, 0).flip(0).reshape(-1, 4)
        if self.kind == "tensor bound":
            y = torch.clamp(y, x, x + x)
        return self.last(y)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("branch", "Deciding cannot be traced"),
        ("sort", "sort has no integer form"),
        ("number divided", "^truediv: .* constant"),
        ("scaled sum", "^add: .*alpha"),
        ("flatten", r"^flatten: .* \(2, 4\) to \(8,\)"),
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
        ([nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(3), nn.Conv2d(3, 2, 1)], {}, r"^1: .* \(4, 4\) to \(3, 3\)"),
        ([nn.Conv2d(3, 3, 1), nn.Upsample(size=6), nn.Conv2d(3, 2, 1)], {}, r"^1: .* \(3, 4, 4\) to \(3, 6, 6\)"),
        ([nn.Conv2d(3, 3, 1), nn.MaxPool2d(2, dilation=2), nn.Conv2d(3, 2, 1)], {}, "^1: .* dilation"),
        ([nn.Conv2d(3, 3, 1), nn.UpsamplingBilinear2d(scale_factor=2), nn.Conv2d(3, 2, 1)], {}, "^1: .* align_corners"),
        (
            [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)],
            {"weight": DoReFa(2)},
            r"its 256 levels .* codes up to \d+, .* int8",
        ),
        ([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)], {"weight": None}, "^1: .*weights are float.* act=None"),
        ([nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)], {}, "^1: GroupNorm"),
    ],
)
def test_layers_without_an_integer_form_are_named(layers, options, message):
    x = torch.rand(64, 3, 4, 4)
    model = spequant.prepare(nn.Sequential(*layers), **({"weight": SAWB(2), "act": PACT(2)} | options))
    spequant.calibrate(model, [x], samples=64)
    with pytest.raises(ValueError, match=message):
        lower(model, x[:1])


class Mixing(nn.Module):
    """A step on three dimensions that has no form."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = nn.Conv1d(2, 3, 3), nn.Linear(4, 2), way

    def forward(self, x):
        return self.b(self.way(self.a(x)))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (lambda y: y.mean(0), r"^mean: .* 0 .* batch"),
        (lambda y: torch.cat([y, y]), "^cat: .* 0 "),
        (lambda y: y.transpose(0, 1), r"^transpose: .* \(1, 0, 2\)"),
        (lambda y: y[:1], "^getitem: .* batch"),
        (lambda y: y[torch.tensor([0])], "^getitem: .* samples"),
        (lambda y: y.chunk(2)[0], "^getitem: .* batch"),
        (lambda y: y.view(-1, 4), r"^output: .* \(6, 2\)"),
        (lambda y: y.flip(0), "^flip: .* samples"),
        (lambda y: y.max(1)[1].float(), "^getitem: places"),
        (lambda y: y + torch.ones(4), r"^add: .* \(4,\)"),
        (lambda y: y.unsqueeze(0), r"^unsqueeze: .* \(1, 2, 3, 4\)"),
    ],
)
def test_what_mixes_samples_or_differs_by_position_is_named(way, message):
    x = torch.randn(8, 2, 6)
    model = spequant.prepare(Mixing(way), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [x], samples=8, reestimate=False)
    with pytest.raises(ValueError, match=message):
        lower(model, x[:1])
