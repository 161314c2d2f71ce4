"""Quantized layers: what they compute, what they refuse, hooks, threads, and gradients."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import spequant
from spequant.layers import QuantizedLayer
from spequant.quantizers import CSQ, LSQ, PACT, SAWB, APoT, DoReFa, LeastSquares, LSQPlus, MinMax


class PaddedConv(nn.Conv2d):
    """A subclass that a user writes, with its own forward."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6), F.linear),
    "conv1d": (nn.Conv1d(3, 4, 3), (2, 3, 9), F.conv1d),
    "conv2d": (nn.Conv2d(3, 4, 3), (2, 3, 9, 9), F.conv2d),
    "conv3d": (nn.Conv3d(3, 4, 3), (2, 3, 5, 5, 5), F.conv3d),
    "transpose1d": (nn.ConvTranspose1d(3, 4, 3), (2, 3, 9), F.conv_transpose1d),
    "transpose2d": (nn.ConvTranspose2d(3, 4, 3), (2, 3, 5, 5), F.conv_transpose2d),
    "transpose3d": (nn.ConvTranspose3d(3, 4, 3), (2, 3, 4, 4, 4), F.conv_transpose3d),
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
    axis = 1 if kind.startswith("transpose") else 0
    assert model.weight_quantizer.shape == (tuple(4 if d == axis else 1 for d in range(w.dim())) if per_channel else ())


SLOW_IN_BF16 = {
    "strides": (nn.Conv2d(8, 8, 3, stride=2, groups=8), (2, 8, 9, 9)),
    "5 x 5": (nn.Conv2d(8, 8, 5, groups=8), (2, 8, 9, 9)),
    "two results a channel": (nn.Conv2d(8, 16, 3, groups=8), (2, 8, 9, 9)),
    "1 dimension": (nn.Conv1d(8, 8, 3, stride=2, groups=8), (2, 8, 9)),
    "3 dimensions": (nn.Conv3d(8, 8, 3, stride=(1, 2, 1), groups=8), (2, 8, 5, 5, 5)),
    "transposed": (nn.ConvTranspose2d(8, 8, 3, stride=2, groups=8), (2, 8, 9, 9)),
}


@pytest.mark.parametrize("kind", SLOW_IN_BF16)
def test_depthwise_convolutions_that_are_slow_in_bf16_compute_in_fp32(kind):
    layer, shape = SLOW_IN_BF16[kind]
    x = torch.randn(shape, requires_grad=True)
    model = spequant.prepare(layer, weight=SAWB(2), act=LSQPlus(2), ends=4)
    spequant.calibrate(model, [x.detach()], samples=len(x))
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16 and torch.equal(output, exact.bfloat16())
    ours, literal = (torch.autograd.grad(y.float().sum(), (x, model.layer.weight)) for y in (output, exact))
    assert all(torch.equal(*pair) for pair in zip(ours, literal, strict=True))


@pytest.mark.parametrize("options", [{"groups": 8}, {"stride": 2}, {"stride": 2, "groups": 4}])
def test_other_convolutions_compute_in_bf16_under_autocast(options):
    layer, x = nn.Conv2d(8, 8, 3, **options), torch.randn(2, 8, 9, 9)
    model = spequant.prepare(layer, weight=SAWB(2), act=LSQPlus(2), ends=4)
    spequant.calibrate(model, [x], samples=len(x))
    with torch.autocast("cpu", torch.bfloat16):
        weight, codes = model.weight_quantizer(layer.weight), model.act_quantizer(x)
        literal = layer._conv_forward(codes, weight, layer.bias)
        assert torch.equal(model(x), literal)
    assert not torch.equal(literal, model(x).bfloat16())


def state(model):
    """Parameters and buffers by name: their identity and a copy of their values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (id(t), t.detach().clone()) for name, t in tensors.items()}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_forward_changes_nothing_in_several_threads_at_once(kind):
    layer, shape, _ = LAYERS[kind]
    x = torch.randn(shape)
    model = spequant.prepare(layer, weight=SAWB(2), act=PACT(2), ends=2).eval()
    spequant.calibrate(model, [x], samples=len(x))
    before, expected, outputs = state(model), model(x).detach(), []
    threads = [threading.Thread(target=lambda: outputs.extend(model(x) for _ in range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 200 and all(torch.equal(output, expected) for output in outputs)
    after = state(model)
    assert before.keys() == after.keys()
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before.values(), after.values(), strict=True))


def test_hooks_of_the_float_layer_run():
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 3)), weight=SAWB(2), act=PACT(2))
    x = torch.randn(64, 4)
    spequant.calibrate(model, [x], samples=64)
    outputs = []
    model[0].layer.register_forward_hook(lambda module, inputs, output: outputs.append(output) or output + 1)
    y = model(x)
    assert len(outputs) == 1 and torch.equal(y, outputs[0] + 1)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_traced_model_computes_the_same():
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


def test_a_pruned_weight_is_quantized_once_it_is_a_plain_parameter_again():
    model = spequant.prepare(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), weight=SAWB(2), act=PACT(2))
    x = torch.randn(64, 8)
    spequant.calibrate(model, [x], samples=64)
    prune.l1_unstructured(model[2].layer, "weight", 0.5)
    prune.remove(model[2].layer, "weight")
    other = copy.deepcopy(model)
    assert torch.equal(other(x), model(x))
    weight = model[2].weight_quantizer(model[2].float_weight)
    torch.testing.assert_close(model(x), F.linear(model[2].act_quantizer(model[:2](x)), weight, model[2].bias))


def test_a_hook_that_writes_the_weight_is_refused(mlp):
    x = torch.randn(4, 8)
    for write in (
        lambda module, args: module.weight.detach().mul_(2),
        lambda module, args: setattr(module, "weight", nn.Parameter(torch.ones(8, 8))),
    ):
        handle = mlp[2].layer.register_forward_pre_hook(write)
        with pytest.raises(RuntimeError, match=r"hook of Linear\(.*weight"):
            mlp(x)
        handle.remove()
    mlp(x)


def test_an_adapter_in_place_of_the_float_layer_is_refused(mlp):
    class LowRank(nn.Module):
        """An adapter like PEFT's LoRA."""

        def __init__(self, base):
            super().__init__()
            self.base_layer, self.down, self.up = base, nn.Linear(8, 1), nn.Linear(1, 8)

        @property
        def weight(self):
            return self.base_layer.weight

        def forward(self, x):
            return self.base_layer(x) + self.up(self.down(x))

    mlp[2].layer = LowRank(mlp[2].layer)
    with pytest.raises(RuntimeError, match=r"^2: its weight.*LowRank"):
        mlp(torch.randn(4, 8))


QUANTIZED = {
    "sawb, pact": (SAWB(2), PACT(2)),
    "lsq": (LSQ(3), LSQ(3)),
    "csq, lsq+": (CSQ(2), LSQPlus(3)),
    "dorefa": (DoReFa(2), DoReFa(2)),
    "apot, min-max": (APoT(3), MinMax(4)),
    "least squares": (LeastSquares(2), PACT(2)),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_gradients_per_sample_by_torch_func_equal_those_of_backward(kind):
    torch.manual_seed(0)
    weight, act = QUANTIZED[kind]
    model = spequant.prepare(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), weight=weight, act=act, ends=2)
    x, labels = torch.randn(8, 6), torch.arange(8) % 3
    spequant.calibrate(model, [x], samples=8)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(parameters, x, label):
        logits = functional_call(model, (parameters, buffers), (x.unsqueeze(0),))
        return F.cross_entropy(logits, label.unsqueeze(0))

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, labels)
    for i in range(8):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), labels[i : i + 1]).backward()
        for name, p in model.named_parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(gradients[name][i], expected, msg=name)
