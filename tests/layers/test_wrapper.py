"""Attributes of the float module, read and written through the quantized one."""

import torch
from torch import nn

import spequant
from spequant.quantizers import PACT, SAWB


def test_a_new_stride_is_written_to_the_convolution():
    model = spequant.prepare(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2)), weight=SAWB(8), act=PACT(8))
    x = torch.randn(16, 3, 9, 9)
    spequant.calibrate(model, [x], samples=16)
    assert model(x).shape[-1] == 4
    model[0].stride = (1, 1)
    assert model[0].layer.stride == (1, 1) and model(x).shape[-1] == 7


def test_attributes_of_a_marked_addition_are_read_and_written_through():
    class Scaled(nn.Module):
        residual_addition = True
        scale = 1.0

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

        def forward(self, branch, shortcut):
            return self.scale * (branch + shortcut) + self.shift

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.add = nn.Linear(4, 4), nn.Linear(4, 4), Scaled()

        def forward(self, x):
            return self.add(self.two(self.one(x)), x)

    model = spequant.prepare(Block(), weight=SAWB(2), act=PACT(2))
    x = torch.randn(16, 4)
    spequant.calibrate(model, [x], samples=16)
    before = model(x)
    model.add.scale = 2.0
    model.add.shift = nn.Parameter(torch.ones(()))
    torch.testing.assert_close(model(x), 2 * before + 1)
    assert model.add.scale == 2.0


def test_attributes_that_the_float_layer_lacks_belong_to_the_wrapper(mlp):
    mlp[2].note = "mine"
    assert mlp[2].note == "mine" and not hasattr(mlp[2].layer, "note")
    del mlp[2].note
    assert not hasattr(mlp[2], "note")
    mlp[2].act_quantizer = None
    mlp(torch.randn(4, 8))
