"""Networks and calls as they come every day, through the formats: what is optional, used twice, unused, or named alike;
autocast around the call; a file that is too large."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.deploy import export_mixed, export_onnx, lower
from spequant.deploy.onnx_file import LARGEST, check_size
from spequant.quantizers import PACT, SAWB
from support.integer_networks import NEEDS_ONNXRUNTIME

pytestmark = NEEDS_ONNXRUNTIME
X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)


class Masked(Base):
    def forward(self, x, mask=None):
        x = F.relu(self.first(x))
        return self.last(x if mask is None else x * mask)


class Optional(Base):
    def forward(self, x, scale=1.0, flag=False, *, names=None):
        return self.last(F.relu(self.first(x)))


class TwoPlaces(Base):
    """One layer in two places, called from both."""

    def __init__(self):
        super().__init__()
        head = nn.Linear(8, 8)
        self.heads = nn.ModuleList([head, head])

    def forward(self, x):
        x = F.relu(self.first(x))
        for head in self.heads:
            x = F.relu(head(x))
        return self.last(x)


class Unused(Base):
    """A branch of which nothing comes, with an operation that has no integer form."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, 8)

    def forward(self, x):
        x = F.relu(self.first(x))
        F.silu(self.other(x))
        return self.last(x)


NETWORKS = {"masked": Masked, "optional": Optional, "two places": TwoPlaces, "unused": Unused}


def prepared(network):
    model = spequant.prepare(network, weight=SAWB(4), act=PACT(4), residual=None)
    spequant.calibrate(model, [X], samples=64)
    return model.eval()


@pytest.mark.parametrize("export", [export_onnx, export_mixed])
@pytest.mark.parametrize("name", NETWORKS)
def test_everyday_networks_are_exported(name, export, tmp_path):
    torch.manual_seed(0)
    found = export(prepared(NETWORKS[name]()), tmp_path / "net.onnx", [X])
    parity = found[0] if isinstance(found, tuple) else found
    assert parity.agreement == 1
    if isinstance(found, tuple):
        assert found[1].islands in (["network: relu"], ["network: relu", "network: silu"])


@pytest.mark.parametrize("export", [export_onnx, pytest.param(export_mixed, marks=pytest.mark.slow)])
def test_a_module_called_several_times_is_written_once(export, tmp_path):
    class Repeats(Base):
        def __init__(self):
            super().__init__()
            self.middle = nn.Linear(8, 64)
            self.back = nn.Linear(64, 8)
            self.times = 1

        def forward(self, x):
            x = F.relu(self.first(x))
            for _ in range(self.times):
                x = F.relu(self.back(F.relu(self.middle(x))))
            return self.last(x)

    onnx = pytest.importorskip("onnx")
    bytes_of_weights = []
    for times in (1, 3):
        torch.manual_seed(0)
        network = Repeats()
        network.times = times
        export(prepared(network), tmp_path / "net.onnx", [X])
        graph = onnx.load(tmp_path / "net.onnx").graph
        bytes_of_weights.append(sum(len(t.raw_data) for t in graph.initializer if np.prod(t.dims) >= 64 * 8))
    assert bytes_of_weights[0] == bytes_of_weights[1] == 2 * 64 * 8


@pytest.mark.parametrize("export", [export_onnx, export_mixed])
def test_autocast_around_an_export_changes_nothing(export, tmp_path):
    model = prepared(Masked())
    export(model, tmp_path / "plain.onnx", [X])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        export(model, tmp_path / "inside.onnx", [X])
        assert torch.is_autocast_enabled("cpu")
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "inside.onnx").read_bytes()


def test_an_output_may_have_the_name_of_an_input(tmp_path):
    class Named(Base):
        def forward(self, input, scale):
            return {"input": self.last(F.relu(self.first(input))), "output": scale * 2}

    batch = {"input": X, "scale": torch.ones(64, 1)}
    model = spequant.prepare(Named(), weight=SAWB(4), act=PACT(4), residual=None)
    spequant.calibrate(model, [batch], samples=64)
    parity, mixed = export_mixed(model.eval(), tmp_path / "net.onnx", [batch])
    assert mixed.outputs == ("input_output", "output") and parity.agreement == 1

    class Alone(Base):
        def forward(self, x):
            return {"input": self.last(F.relu(self.first(x)))}

    assert export_mixed(prepared(Alone()), tmp_path / "net.onnx", [X])[1].outputs == ("input_output",)
    with pytest.raises(ValueError, match="images have names"):
        export_onnx(prepared(Masked()), tmp_path / "other.onnx", [{"x": X}])


def test_an_operation_without_an_integer_form_is_named_with_its_module():
    class Inner(Base):
        def forward(self, x):
            return self.last(torch.softmax(self.first(x), 1))

    model = prepared(nn.Sequential(nn.Sequential(Inner())))
    with pytest.raises(ValueError, match=r"^0\.0\.softmax: "):
        lower(model, X)


@pytest.mark.parametrize("export", [export_onnx, export_mixed])
def test_what_an_onnx_file_cannot_hold_is_refused(export, tmp_path, monkeypatch):
    check_size(LARGEST)
    with pytest.raises(ValueError, match=r"2,146,435,073 bytes"):
        check_size(LARGEST + 1)
    monkeypatch.setattr(sys.modules["spequant.deploy.onnx_file"], "LARGEST", 50)
    with pytest.raises(ValueError, match=r"at most 50\b.*spequant\.pack"):
        export(prepared(Masked()), tmp_path / "net.onnx", [X])
    assert not list(tmp_path.iterdir())


def test_biases_are_spoken_of_where_rounding_them_would_help(tmp_path):
    torch.manual_seed(0)
    model = prepared(Masked())
    assert export_onnx(model, tmp_path / "net.onnx", [X]).off_grid == ["first", "last"]
    spequant.deploy.quantize_biases(model, X[:1])
    assert export_onnx(model, tmp_path / "net.onnx", [X]).off_grid == []
