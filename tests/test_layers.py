"""Quantized layers: what they compute, what of the float layer can be read, and the bits that they take."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.layers import QuantizedLayer, weight_bits
from spequant.quantizers import PACT, SAWB


class PaddedConv(nn.Conv2d):
    """A user's subclass with its own forward."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6), F.linear),
    "conv1d": (nn.Conv1d(3, 4, 3), (2, 3, 9), F.conv1d),
    "conv2d": (nn.Conv2d(3, 4, 3), (2, 3, 9, 9), F.conv2d),
    "conv3d": (nn.Conv3d(3, 4, 3), (2, 3, 5, 5, 5), F.conv3d),
    "transpose": (nn.ConvTranspose2d(3, 4, 3), (2, 3, 5, 5), F.conv_transpose2d),
    "subclass": (PaddedConv(3, 4, 3), (2, 3, 9, 9), lambda x, w, b: F.conv2d(F.pad(x, (1, 1, 1, 1)), w, b)),
}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_computes_on_quantized_weight_and_input(kind, per_channel):
    layer, shape, literal = LAYERS[kind]
    x = torch.randn(shape)
    model = spequant.prepare(layer, weight=SAWB(2), act=PACT(2), ends=2, per_channel=per_channel)
    spequant.calibrate(model, [x], samples=len(x))
    assert isinstance(model, QuantizedLayer) and isinstance(layer, type(model.layer))
    w = model.weight_quantizer(layer.weight)
    torch.testing.assert_close(model(x), literal(model.act_quantizer(x), w, layer.bias))
    assert len(w.unique()) <= (16 if per_channel else 4)
    axis = 1 if kind == "transpose" else 0
    assert model.weight_quantizer.shape == (tuple(4 if d == axis else 1 for d in range(w.dim())) if per_channel else ())


def test_size_at_real_bits():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model = spequant.prepare(model, weight=SAWB(2), act=PACT(2))
    assert weight_bits(model) == 8 * 32 + 2 * 64 + 8 * 16 + 32 * (8 + 8 + 2)


def test_a_weight_that_a_float_module_reads_counts_as_float():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    assert weight_bits(spequant.prepare(model, weight=SAWB(2), act=None, ends=2, embeddings=None)) == 32 * 40


def test_what_else_a_layer_has_can_be_read_but_its_weight():
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 3)), weight=SAWB(2), act=PACT(2))
    assert model[0].out_features == 3 and model[0].bias.shape == (3,)
    assert model[0].weight.shape == (3, 4)
    with pytest.raises(AttributeError, match=r"0 is quantized: reading its weight .* skip=\['0'\]"):
        _ = model[0].weight.data
    with pytest.raises(AttributeError, match="nothing"):
        _ = model[0].nothing
