"""Zero points of LSQ+ in a network: training under SPEQ, packed files, integer programs, and engines that run them."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import Twin, integer_graph, load_packed, lower, pack, quantize_biases
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats.onnx import op_graph
from spequant.deploy.grids import Grid, Home, stored
from spequant.deploy.operations import Input
from spequant.deploy.width import at_width
from spequant.methods import SPEQ
from spequant.models import resnet8
from spequant.models.residual import ResidualAdd
from spequant.policies import LowBit
from spequant.quantizers import SAWB, LSQPlus


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        Swish(),
        nn.Conv2d(8, 4, 1),  # a linear bottleneck
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        Swish(),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


class Residual(nn.Module):
    """Its addends have a sign, what it convolves has none."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv, self.inner, self.add = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), ResidualAdd()
        self.pool, self.flatten, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(self.add(self.inner(self.conv(x)), x))
        return self.head(self.flatten(self.pool(x)))


def resnet():
    return resnet8(in_channels=3)


def uncalibrated(bits, made=network):
    """Ends of 8-bit activations, but not weights: their products would saturate on processors without VNNI."""
    return spequant.prepare(made(), weight=SAWB(3), act=LSQPlus(bits), ends=(3, 8))


def prepared(bits, x, made=network):
    model = uncalibrated(bits, made)
    spequant.calibrate(model, [x], samples=len(x))
    return model


def test_speq_trains_it_and_the_state_comes_back():
    x, labels = torch.randn(32, 3, 8, 8), torch.randint(0, 5, (32,))
    model = prepared(2, x)
    method = SPEQ(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before = {n: p.clone() for n, p in model.named_parameters()}
    for _ in range(6):
        optimizer.zero_grad()
        losses = method(model.train(), (x, labels))
        assert torch.isfinite(losses.total)
        losses.total.backward()
        optimizer.step()
    moved = [n for n, p in model.named_parameters() if n.endswith(".offset") and not torch.equal(p, before[n])]
    assert moved
    fresh = uncalibrated(2)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def grids(program):
    return [op.grid for op in program.ops if op.grid is not None]


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_packed_it_answers_the_same_at_every_width(bits, tmp_path):
    x = torch.randn(16, 3, 8, 8)
    model = prepared(bits, x).eval()
    pack(model, tmp_path / "a")
    loaded = load_packed(tmp_path / "a", network())
    for width in (None, 1, 2, 3, 5, 8):
        outputs = []
        for each in (model, loaded):
            if width is None:
                outputs.append(each(x))
            else:
                with spequant.precision(each, spequant.Fixed(width)):
                    outputs.append(each(x))
        assert torch.equal(*outputs)
    pack(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def run(engine, model, feed):
    return ENGINES[engine](model.SerializeToString())(feed)


ENGINES_OF = ("onnxruntime", "openvino")
QUICK = [
    (network, 1, "onnxruntime"),
    (network, 4, "openvino"),
    (network, 8, "onnxruntime"),
    (Residual, 4, "onnxruntime"),
    (Residual, 2, "openvino"),
]
SLOW = [case for case in product([network], [1, 2, 4, 8], ENGINES_OF) if case not in QUICK]
SLOW += product([resnet], [4], ENGINES_OF)


@pytest.mark.parametrize(
    ("made", "bits", "engine"), [*QUICK, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW)]
)
def test_engines_give_its_codes(made, bits, engine):
    pytest.importorskip(engine)
    x = torch.randn(16, 3, 8, 8)
    model = prepared(bits, x, made)
    quantize_biases(model, x[:1])
    model.eval()
    program = lower(model, x[:1])
    twin = Twin(program)
    values = twin.everything(x)
    torch.testing.assert_close(twin(x), model(x), rtol=1e-3, atol=2e-2 * float(model(x).detach().std()))
    assert any(grid.zero not in (0, 128) for grid in grids(program)) and any(grid.low < 0 for grid in grids(program))
    for op in program.ops:
        if not isinstance(op, Input) and op.grid is not None:
            names = {f"in{i}": source for i, source in enumerate(dict.fromkeys(op.inputs))}
            feed = {n: stored(values[s], s.grid) if s.grid else values[s].numpy() for n, s in names.items()}
            (got,) = run(engine, op_graph(op), feed)
            wrong = got.astype(int) - stored(values[op], op.grid)
            assert np.abs(wrong).max() <= 1 and (wrong != 0).mean() <= (0 if engine == "onnxruntime" else 2e-3), op.name
    (got,) = run(engine, integer_graph(program), {"input": x.numpy()})
    np.testing.assert_allclose(got, twin(x).numpy(), rtol=1e-3, atol=1e-6 + 2e-2 * float(twin(x).std()))


def test_another_width_is_exported_too():
    x = torch.randn(16, 3, 8, 8)
    model = prepared(3, x).eval()
    program = at_width(lower(model, x[:1]), 8, 3)
    with spequant.precision(model, LowBit(8, 3)):
        switched = lower(model, x[:1])
    assert grids(program) == grids(switched)


@pytest.mark.parametrize(
    ("grid", "zero"),
    [
        (Grid(0.5, -20, 235), 20),
        (Grid(0.5, -255, 0), 255),
        (Grid(0.5, 0, 255), 0),
        (Grid(0.5, -128, 127), 128),
        (Grid(0.5, -1, 2), 1),  # from 0 on
        (Grid(0.5, 0, 235, Home(8, 256, -10.0, 117.5)), 20),  # what ReLU leaves stays beside the others
        (Grid(0.5, 0, 127, Home(8, 255, -63.5, 63.5)), 128),
    ],
)
def test_codes_are_stored_in_a_byte(grid, zero):
    assert grid.zero == zero
    codes = torch.tensor([grid.low, 0, grid.high])
    assert stored(codes, grid).tolist() == (codes + zero).tolist()
