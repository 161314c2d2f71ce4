"""Quantized layers: what they compute, what of the float layer can be read, and the bits that they take."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import spequant
from spequant.layers import LEAVES, QuantizedLayer, weight_bits
from spequant.quantizers import CSQ, LSQ, PACT, SAWB, APoT, DoReFa, LeastSquares, LSQPlus, MinMax


class PaddedConv(nn.Conv2d):
    """A user's subclass with its own forward."""

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
    with pytest.raises(AttributeError, match=r"^0 is quantized.*skip=\['0'\]"):
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


@pytest.fixture
def mlp():
    """A calibrated network of two linear layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model = spequant.prepare(net, weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [torch.randn(64, 8)], samples=64)
    return model


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


def test_a_layer_that_an_adapter_has_taken_the_place_of_is_refused(mlp):
    class LowRank(nn.Module):
        """As PEFT's LoRA."""

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


# --- writes through the quantized layer -----------------------------------------------------------------------


def test_freezing_the_weight_freezes_it(mlp):
    mlp[2].weight.requires_grad = False
    mlp[0].weight.requires_grad_(False)
    assert not mlp[2].weight.requires_grad and not mlp[2].layer.weight.requires_grad
    mlp(torch.randn(4, 8)).sum().backward()
    assert mlp[2].layer.weight.grad is None and mlp[0].weight.grad is None
    assert mlp[4].weight.grad is mlp[4].layer.weight.grad and mlp[4].weight.grad.abs().sum() > 0


def test_what_is_written_reaches_the_layer(mlp):
    weight, bias = torch.randn(8, 8), nn.Parameter(torch.zeros(8))
    mlp[2].weight.data = weight
    mlp[2].bias = bias
    assert torch.equal(mlp[2].layer.weight, weight) and mlp[2].layer.bias is bias
    mlp[2].bias = None
    assert mlp[2].layer.bias is None and mlp[2].bias is None
    mlp[2].weight = new = nn.Parameter(torch.ones(8, 8))
    assert mlp[2].layer.weight is new
    mlp[0].register_parameter("bias", None)
    assert mlp[0].layer.bias is None and mlp[0](torch.zeros(1, 8)).abs().sum() == 0
    mlp[4].weight.grad = torch.ones(3, 8)
    assert torch.equal(mlp[4].layer.weight.grad, torch.ones(3, 8))
    mlp[2].weight = mlp[2].weight


def test_settings_of_a_convolution_are_written_to_it():
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


def test_what_the_float_layer_does_not_have_is_the_wrappers(mlp):
    mlp[2].note = "mine"
    assert mlp[2].note == "mine" and not hasattr(mlp[2].layer, "note")
    del mlp[2].note
    assert not hasattr(mlp[2], "note")
    mlp[2].act_quantizer = None
    mlp(torch.randn(4, 8))


@pytest.mark.parametrize(
    ("value", "error"),
    [(None, ValueError), (torch.ones(8, 8), ValueError), (nn.Parameter(torch.ones(3, 8)), ValueError)],
)
def test_a_weight_that_cannot_be_set_is_refused(mlp, value, error):
    with pytest.raises(error, match=r"^2: its weight.*\(8, 8\)"):
        mlp[2].weight = value


def test_weights_are_tied_before_prepare(mlp):
    with pytest.raises(ValueError, match=r"^2: its weight .* of 0"):
        mlp[2].weight = mlp[0].weight
    with pytest.raises(ValueError, match=r"^2: its weight .*\(3, 8\)"):
        mlp[2].weight.data = torch.ones(3, 8)


USES = {
    "times": lambda w: w * 2,
    "times from the left": lambda w: 2 * w,
    "minus": lambda w: -w,
    "power": lambda w: w**2,
    "product": lambda w: w @ torch.ones(8),
    "product from the left": lambda w: torch.ones(8) @ w,
    "item": lambda w: w[0],
    "set item": lambda w: w.__setitem__(0, 0.0),
    "iterate": list,
    "in": lambda w: 1.0 in w,
    "equal": lambda w: w == 0,
    "greater": lambda w: w > 0,
    "truth": bool,
    "number": float,
    "added to": lambda w: torch.ones(8, 8).add_(w),
    "in place": lambda w: w.mul_(2),
    "method": lambda w: w.abs(),
    "detached": lambda w: w.detach(),
    "data in place": lambda w: w.data.normal_(),
    "initialised": nn.init.xavier_uniform_,
    "norm": torch.linalg.vector_norm,
    "function": lambda w: F.linear(torch.ones(1, 8), w),
    "numpy": lambda w: __import__("numpy").asarray(w),
    "stacked": lambda w: torch.stack([w, w]),
    "other attribute": lambda w: setattr(w, "note", 1),
    "transposed": lambda w: w.T,
}


@pytest.mark.parametrize("use", USES)
def test_a_use_of_the_weights_values_names_the_layer(mlp, use):
    before = mlp[2].layer.weight.detach().clone()
    with pytest.raises(AttributeError, match=r"^2 is quantized"):
        USES[use](mlp[2].weight)
    assert torch.equal(mlp[2].layer.weight, before)


# --- tools that look into a network, and threads --------------------------------------------------------------


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m, qualified_name):
        return isinstance(m, LEAVES) or super().is_leaf_module(m, qualified_name)


def test_fx_traces_with_quantized_layers_as_leaves_and_says_so_without(mlp):
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
    found = extractor(x)
    assert torch.equal(found["2"], model[:3](x)) and torch.equal(found["1"], model[:2](x))


QUANTIZED = {
    "sawb, pact": (SAWB(2), PACT(2)),
    "lsq": (LSQ(3), LSQ(3)),
    "csq, lsq+": (CSQ(2), LSQPlus(3)),
    "dorefa": (DoReFa(2), DoReFa(2)),
    "apot, min-max": (APoT(3), MinMax(4)),
    "least squares": (LeastSquares(2), PACT(2)),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_gradients_of_single_samples_by_torch_func_are_those_of_backward(kind):
    torch.manual_seed(0)
    weight, act = QUANTIZED[kind]
    model = spequant.prepare(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), weight=weight, act=act, ends=2)
    x, labels = torch.randn(8, 6), torch.arange(8) % 3
    spequant.calibrate(model, [x], samples=8)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(parameters, x, label):
        logits = functional_call(model, (parameters, buffers), (x.unsqueeze(0),))
        return F.cross_entropy(logits, label.unsqueeze(0))

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, labels)
    for i in range(8):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), labels[i : i + 1]).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(found[name][i], torch.zeros_like(p) if p.grad is None else p.grad, msg=name)
