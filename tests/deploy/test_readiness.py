"""What an export would refuse or leave float, said before training, by layer."""

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import ExportCheck, requantization
from spequant.quantizers import PACT, SAWB


class Network(nn.Module):
    """A layer norm has no integer form, a softmax neither; SiLU has one behind a quantizer."""

    def __init__(self, layers):
        super().__init__()
        self.first, self.layers, self.last = nn.Linear(6, 8), nn.ModuleList(layers), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def test_every_step_without_a_form_is_named_at_once():
    network = Network([nn.LayerNorm(8), nn.SiLU(), nn.Softmax(1)])
    before = {name: t.clone() for name, t in network.state_dict().items()}
    found = spequant.check_export(network, X)
    assert not found.ok and [f.name for f in found.refused] == ["layers.0", "layers.2"]
    assert "LayerNorm" in str(found) and "batch norm" in str(found) and "--to mixed" in str(found)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


@pytest.mark.parametrize(("between", "floats"), [(8, []), (None, ["layers.0"])])
def test_what_stays_float_is_named_with_what_to_do(between, floats):
    model = spequant.prepare(Network([nn.SiLU()]), weight=SAWB(4), act=PACT(4), between=between)
    found = spequant.check_export(model, X)
    assert found.ok and [f.name for f in found.floats] == floats
    assert ("between=8" in str(found)) == bool(floats)
    assert not any(q.calibrated for q in model.modules() if isinstance(q, PACT))


def test_a_calibrated_model_keeps_its_ranges():
    model = spequant.prepare(Network([nn.ReLU()]), weight=SAWB(4), act=PACT(4))
    spequant.calibrate(model, [X], samples=4)
    assert str(spequant.check_export(model, X)) == "--to onnx: integers throughout"


def test_an_addend_and_a_layer_in_float_are_told_apart():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.c(torch.relu(self.a(x)) + self.b(x))

    model = spequant.prepare(Sum(), weight=SAWB(4), act=PACT(4), skip=["b"])
    found = spequant.check_export(model, X)
    advice = {f.name: f.instead for f in found.floats}
    assert "residual=8" in advice["add"] and "skip" in advice["b"]


def test_what_concerns_the_whole_network_is_a_finding_too():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else -self.layer(x)

    found = spequant.check_export(Branch(), X)
    assert [f.name for f in found.refused] == [""] and "values of tensors" in str(found)
    assert not ExportCheck("onnx", found.refused).ok
    with pytest.raises(ValueError, match="format is 'onx'"):
        spequant.check_export(Branch(), X, "onx")


def test_what_only_the_writers_of_a_format_refuse_is_foreseen_layer_by_layer():
    pytest.importorskip("ai_edge_litert")
    layers = nn.Conv3d(2, 3, 2), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(3, 3, 1), nn.Flatten(), nn.Linear(3, 2)
    x = torch.randn(2, 2, 3, 3, 3)
    found = spequant.check_export(nn.Sequential(*layers), x, "tflite")
    assert (
        [f.name for f in found.refused] == ["0", "2", "3"] and "3 dimensions" in found.line and "2 more" in found.line
    )
    assert spequant.check_export(nn.Sequential(*layers), x, "c").line == "integers throughout"


def test_a_check_does_not_search_biases_which_takes_half_a_minute_of_a_resnet_50(monkeypatch, tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = spequant.prepare(Network([nn.ReLU()]), weight=SAWB(4), act=PACT(4))
    spequant.calibrate(model, [X], samples=4)
    monkeypatch.setattr(requantization, "requantization", None)
    assert spequant.check_export(model, X, "tflite").ok
    with pytest.raises(TypeError, match="not callable"):
        spequant.export(model.eval(), tmp_path / "a.tflite", [X])


def test_what_a_format_has_not_in_float_is_refused_with_what_to_do():
    model = spequant.prepare(Network([nn.SiLU()]), weight=SAWB(4), act=PACT(4))
    found = spequant.check_export(model, X, "c")
    assert [f.name for f in found.refused] == ["layers.0"] and "between=8" in found.refused[0].instead
    assert "in float: layers.0" in spequant.check_export(model, X).line


@pytest.mark.slow
def test_formats_without_a_program_are_asked_too():
    pytest.importorskip("onnxscript")
    network = Network([nn.LayerNorm(8), nn.SiLU()])
    found = spequant.check_export(network, X, "mixed")
    assert found.ok and {f.name for f in found.floats} >= {"layers.0", "layers.1"}
    assert spequant.check_export(network, X, "packed").ok


def test_what_prepare_cannot_trace_is_said():
    class Unfolded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b = nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(self.act(self.a(x)).view(*x.shape[:1], 6))

    found = spequant.check_export(Unfolded(), torch.randn(2, 6))
    assert found.ok and "cannot be traced" in str(found)
