"""What stands between the layers and gets a quantizer for integers throughout."""

import pytest
import torch
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


def test_where_it_cannot_be_traced_a_warning_says_so():
    class Branching(Excited):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.warns(UserWarning, match="between=None"):
        spequant.prepare(Branching(), weight=SAWB(4), act=PACT(4), residual=None, between=8)
