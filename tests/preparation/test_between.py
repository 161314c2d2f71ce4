"""What stands between the layers and gets a quantizer for integers throughout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.layers import act_quantizers
from spequant.preparation.between import groups_between
from spequant.quantizers import PACT, SAWB


class Excited(nn.Module):
    """SiLU behind batch norm, and squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.curve = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU()
        self.squeeze, self.gate, self.head = nn.Conv2d(4, 4, 1), nn.Sigmoid(), nn.Linear(4, 2)

    def forward(self, x):
        x = self.curve(self.norm(self.conv(x)))
        x = x * self.gate(self.squeeze(x.mean((2, 3), keepdim=True)))
        return self.head(x.mean((2, 3)))


def test_inputs_of_functions_and_factors_are_found():
    names = {name for group in groups_between(Excited()) for name in group}
    assert {"norm", "squeeze", "gate", "curve"} <= names and "head" not in names


def test_between_gives_them_its_bits_and_none_leaves_them_float():
    x = torch.randn(64, 3, 8, 8)
    model = spequant.prepare(Excited(), weight=SAWB(4), act=PACT(4), between=6)
    bits = {name: q.bits for name, q in act_quantizers(model).items()}
    assert bits["norm.output"] == 6
    spequant.calibrate(model, [x], samples=64)
    assert not spequant.check_export(model, x[:1], "onnx").refused
    plain = spequant.prepare(Excited(), weight=SAWB(4), act=PACT(4))
    assert not any(".output" in name for name in act_quantizers(plain))


class Everyday(nn.Module):
    """A sum of what ReLU leaves as a function, parts in a list, lines between pixels, a sigmoid at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(6, 2, 1)
        self.up, self.gate, self.last = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Sigmoid(), nn.Sigmoid()

    def forward(self, x):
        parts = list((F.relu(self.a(x)) + F.relu(self.b(x))).chunk(2, 1))
        y = torch.cat([*parts, parts[0]], 1)
        return self.last(self.c(y)), self.up(self.c(y))


def test_sums_of_functions_and_functions_that_are_outputs_are_found():
    groups = groups_between(Everyday())
    assert ["a"] in groups and ["b"] in groups and ["last"] in groups


def test_timms_batch_norm_has_its_function_behind_a_grid():
    layers = pytest.importorskip("timm.layers")
    norms = [layers.BatchNormAct2d(4, act_layer=act) for act in (nn.SiLU, nn.ReLU)]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norms[0], nn.Conv2d(4, 4, 1), norms[1], nn.Conv2d(4, 2, 1))
    assert groups_between(network) == [["1.drop"]]
    assert str(spequant.check_export(network, torch.randn(2, 3, 4, 4))) == "--to onnx: integers throughout"


def test_where_it_cannot_be_traced_a_warning_says_so():
    class Branching(Excited):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.warns(UserWarning, match="between=None"):
        spequant.prepare(Branching(), weight=SAWB(4), act=PACT(4), residual=None, between=8)


class Grown(nn.Module):
    """A shortcut to the first channels only, as of ReXNet: a sum that no module makes."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 1), Widening(), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.block(F.relu(self.stem(x))).mean((2, 3)))


class Widening(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return torch.cat([y[:, :4] + x, y[:, 4:]], 1)


def test_where_no_module_makes_what_is_concatenated_the_concatenation_is_found():
    assert ["block"] in groups_between(Grown())
    x = torch.randn(64, 3, 8, 8)
    model = spequant.prepare(Grown(), weight=SAWB(4), act=PACT(4), between=8)
    spequant.calibrate(model, [x], samples=64)
    found = spequant.check_export(model, x[:1], "onnx")
    assert found.ok and not found.floats
