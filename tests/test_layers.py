"""Quantized layers: what they compute, what of the float layer can be read, and the bits that they take."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

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


def everything(model):
    """Parameters, buffers, and which objects hold them."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (id(t), t.detach().clone()) for name, t in tensors.items()}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_forward_changes_nothing_however_many_threads_run_it(kind):
    layer, shape, _ = LAYERS[kind]
    x = torch.randn(shape)
    model = spequant.prepare(layer, weight=SAWB(2), act=PACT(2), ends=2).eval()
    spequant.calibrate(model, [x], samples=len(x))
    before, expected, answers = everything(model), model(x).detach(), []
    threads = [threading.Thread(target=lambda: answers.extend(model(x) for _ in range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 200 and all(torch.equal(answer, expected) for answer in answers)
    after = everything(model)
    assert before.keys() == after.keys()
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before.values(), after.values(), strict=True))


def test_hooks_of_the_float_layer_run():
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 3)), weight=SAWB(2), act=PACT(2))
    x = torch.randn(64, 4)
    spequant.calibrate(model, [x], samples=64)
    seen = []
    model[0].layer.register_forward_hook(lambda module, inputs, output: seen.append(output) or output + 1)
    y = model(x)
    assert len(seen) == 1 and torch.equal(y, seen[0] + 1)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_it_is_traced_as_it_computes():
    model = spequant.prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), weight=SAWB(2), act=PACT(2))
    x = torch.randn(16, 3, 6, 6)
    spequant.calibrate(model.eval(), [x], samples=16)
    traced = torch.jit.trace(model, (x,))
    assert torch.equal(traced(x + 0.1), model(x + 0.1))


COMPUTED = {
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "parametrized weight norm": parametrizations.weight_norm,
    "parametrized spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("name", COMPUTED)
def test_a_weight_that_is_computed_from_others_is_refused_at_the_next_forward(name):
    model = spequant.prepare(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), weight=SAWB(2), act=PACT(2))
    x = torch.randn(64, 8)
    spequant.calibrate(model, [x], samples=64)
    COMPUTED[name](model[2].layer)
    with pytest.raises(RuntimeError, match=r"^2: its weight"):
        model(x)


def test_a_pruned_weight_that_is_plain_again_is_quantized():
    model = spequant.prepare(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), weight=SAWB(2), act=PACT(2))
    x = torch.randn(64, 8)
    spequant.calibrate(model, [x], samples=64)
    prune.l1_unstructured(model[2].layer, "weight", 0.5)
    prune.remove(model[2].layer, "weight")
    other = copy.deepcopy(model)
    assert torch.equal(other(x), model(x))
    weight = model[2].weight_quantizer(model[2].float_weight)
    torch.testing.assert_close(model(x), F.linear(model[2].act_quantizer(model[:2](x)), weight, model[2].bias))
