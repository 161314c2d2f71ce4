"""Quantizers in a model: the bits of its weights, and tools that trace it."""

import pytest
import torch
from torch import fx, nn

import spequant
from spequant.layers import LEAVES, weight_bits
from spequant.quantizers import PACT, SAWB


def test_quantized_weights_count_at_their_bits():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model = spequant.prepare(model, weight=SAWB(2), act=PACT(2))
    assert weight_bits(model) == 8 * 32 + 2 * 64 + 8 * 16 + 32 * (8 + 8 + 2)


def test_a_weight_that_a_float_module_reads_counts_as_float():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    assert weight_bits(spequant.prepare(model, weight=SAWB(2), act=None, ends=2, embeddings=None)) == 32 * 40


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m, qualified_name):
        return isinstance(m, LEAVES) or super().is_leaf_module(m, qualified_name)


def test_fx_traces_with_quantized_layers_as_leaves_and_is_refused_without(mlp):
    x = torch.randn(4, 8)
    graph = LeafTracer().trace(mlp)
    assert torch.equal(fx.GraphModule(mlp, graph)(x), mlp(x))
    with pytest.raises(TypeError, match=r"^0: .*LEAVES"):
        fx.symbolic_trace(mlp)


def test_features_are_extracted_with_leaves():
    from torchvision.models.feature_extraction import create_feature_extractor

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(100, 3))
    model = spequant.prepare(net, weight=SAWB(2), act=PACT(2)).eval()
    x = torch.randn(16, 3, 9, 9)
    spequant.calibrate(model, [x], samples=16)
    extractor = create_feature_extractor(model, ["1", "2"], tracer_kwargs={"leaf_modules": [*LEAVES]})
    features = extractor(x)
    assert torch.equal(features["2"], model[:3](x)) and torch.equal(features["1"], model[:2](x))
