"""What hangs on modules from outside is refused by name, in every format that would leave it out, or is in the file."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import spequant
from spequant.deploy import Twin, export_onnx, lower, mixed_graph, quantize_biases
from spequant.deploy.checks import check_hooks
from spequant.deploy.operations import FloatLayer
from spequant.quantizers import LSQ, PACT, SAWB
from support.integer_networks import NEEDS_ONNXRUNTIME, prepared
from support.mixed_networks import NEEDS_ONNXSCRIPT, exported
from support.mixed_networks import prepared as prepared_mixed


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc, self.act = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU()

    def forward(self, x):
        x = self.stem(x)
        return self.act(self.fc(x)) + x


def network():
    return nn.Sequential(Block(), nn.Dropout(0.1), nn.Linear(6, 3))


def doubled(module, args, *output):
    return 2 * output[0] if output else tuple(2 * x for x in args)


def watching(*_):
    """Returns nothing and changes nothing, which nobody can know."""


class Callable:
    def __call__(self, module, args, output):
        return 2 * output


HOOKS = {
    "hook": lambda module: module.register_forward_hook(doubled),
    "watching": lambda module: module.register_forward_hook(watching),
    "pre-hook": lambda module: module.register_forward_pre_hook(doubled),
    "callable": lambda module: module.register_forward_hook(Callable()),
    "keywords": lambda module: module.register_forward_hook(lambda m, a, k, out: 2 * out, with_kwargs=True),
}
PLACES = {
    "": "Sequential",
    "0": "0",
    "0.act": r"0\.act",
    "0.fc": r"0\.fc",
    "0.fc.layer": r"0\.fc\.layer",
    "1": "1",
    "2.act_quantizer": r"2\.act_quantizer",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_hook_is_refused_by_the_name_of_its_module(place):
    x = torch.randn(64, 6)
    model = prepared(network(), x)
    for register in HOOKS.values():
        handle = register(model.get_submodule(place))
        with pytest.raises(ValueError, match=rf"^{PLACES[place]}: the forward hook .*handle\.remove"):
            lower(model, x[:1])
        handle.remove()
    lower(model, x[:1])


def test_every_way_to_an_integer_file_asks(tmp_path):
    x = torch.randn(64, 6)
    model = prepared(network(), x)
    model[0].act.register_forward_hook(doubled)
    for way in (lambda: quantize_biases(model, x), lambda: export_onnx(model, tmp_path / "a.onnx", [x])):
        with pytest.raises(ValueError, match=r"^0\.act: .* doubled "):
            way()
    assert not list(tmp_path.iterdir())


def test_a_forward_put_on_a_module_and_hooks_of_all_modules_are_refused():
    x = torch.randn(64, 6)
    model = prepared(network(), x)
    model[0].act.forward = lambda x: 2 * x
    with pytest.raises(ValueError, match=r"^0\.act: .*forward"):
        lower(model, x[:1])
    del model[0].act.forward
    handle = nn.modules.module.register_module_forward_hook(watching)
    try:
        for check in (lambda: lower(model, x[:1]), lambda: check_hooks(())):
            with pytest.raises(ValueError, match=r"^all modules: .* watching "):
                check()
    finally:
        handle.remove()
    lower(model, x[:1])


class Chosen(nn.Module):
    """Which of its ways it goes, it decides when it is made, as some of timm's do."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
        self.forward = self.second

    def second(self, x):
        return self.head(self.act(self.fc(x)))


def test_a_forward_that_runs_while_it_is_traced_is_in_the_file():
    x = torch.randn(64, 6)
    model = prepared(nn.Sequential(Chosen(), nn.Flatten()), x)
    torch.testing.assert_close(Twin(lower(model, x[:1]))(x), model(x), rtol=1e-3, atol=1e-3)
    model.forward = lambda x: 2 * x
    with pytest.raises(ValueError, match=r"^Sequential: .*forward"):
        lower(model, x[:1])


def test_the_librarys_own_hooks_and_those_that_make_weights_are_in_the_file():
    x = torch.randn(64, 6)
    model = prepared(network(), x, residual=8)
    assert any(m._forward_hooks for m in model.modules())
    lower(model, x[:1])
    model = spequant.prepare(network(), weight=SAWB(2), act=PACT(2), skip=["2"])
    prune.l1_unstructured(model[2], "weight", 0.5)
    spequant.calibrate(model, [x], samples=64)
    program = lower(model.eval(), x[:1])
    (layer,) = [op for op in program.ops if isinstance(op, FloatLayer)]
    assert int((layer.weight == 0).sum()) == 9


@NEEDS_ONNXRUNTIME
@NEEDS_ONNXSCRIPT
def test_in_the_mixed_form_hooks_of_quantized_layers_are_refused_and_all_others_are_in_the_graph():
    x = torch.randn(16, 6)
    model = prepared_mixed(network(), x, weight=LSQ(4), act=LSQ(4))
    for place in ("0.fc", "0.fc.layer", "2.act_quantizer"):
        for kind in HOOKS:
            handle = HOOKS[kind](model.get_submodule(place))
            with pytest.raises(ValueError, match=rf"^{PLACES[place]}: the forward hook"):
                mixed_graph(model, x[:1])
            handle.remove()
    plain = model(x)
    for place in ("0.act", "0", ""):
        model.get_submodule(place).register_forward_hook(doubled)
    model.get_submodule("1").register_forward_pre_hook(doubled)
    _, expected, got = exported(model, x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, plain, rtol=0.1)
