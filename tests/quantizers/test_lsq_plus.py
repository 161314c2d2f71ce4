"""LSQ+: values and gradients, where it starts, training under SPEQ, and what becomes of its zero points in files."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from reference import quantizers as literal
from spequant.export import Twin, integer_graph, load_packed, lower, pack, quantize_biases
from spequant.export.engines import ENGINES
from spequant.export.onnx_integer import op_graph, stored
from spequant.export.program import Grid, Home, Input
from spequant.export.width import at_width
from spequant.methods import SPEQ
from spequant.models import resnet8
from spequant.precision import LowBit
from spequant.quantizers import LSQ, PACT, SAWB, LSQPlus, least_squares, percentile


def error(q, x):
    """Relative, squared."""
    with torch.no_grad():
        return float((q(x) - x).square().mean() / x.square().mean())


def fitted(q, x, rule=least_squares):
    q.fit(x, rule)
    return q


@pytest.mark.parametrize("share", [-0.2, 0.0, 0.12, 0.45, 0.83, 1.0, 1.3])
@pytest.mark.parametrize("bits", range(1, 9))
def test_values_and_gradients(bits, share):
    q = LSQPlus(bits, signed=True)
    q.calibrated = True
    p = 2**bits - 1
    step = 1.9 / p
    with torch.no_grad():
        q.step.fill_(step)
        q.offset.fill_(-share * p * step)
    leaf, grad = torch.randn(6, 200, requires_grad=True), torch.randn(6, 200)
    y = q(leaf)
    y.backward(grad)
    step, beta = float(q.step.detach()), float(q.offset.detach())
    x = leaf.detach().double().numpy()
    expected, *gradients = literal.lsq_plus(x, grad.double().numpy(), step, beta, p, 200)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    for parameter, to_it in zip((leaf, q.step, q.offset), gradients, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), to_it, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_unsigned_it_is_lsq(bits):
    x, found = torch.randn(6, 200).relu() * 1.4, []
    for q in (LSQ(bits, signed=False), LSQPlus(bits, signed=False)):
        q.fit(x, least_squares)
        y = q(x)
        y.square().sum().backward()
        found.append((y.detach(), q.step.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert not q.offset.requires_grad
    q.set_signed(True)
    assert q.offset.requires_grad


@pytest.mark.parametrize("activation", [F.gelu, F.silu])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_starts_nearer_than_symmetric_lsq(activation, bits):
    x = activation(torch.randn(20_000))
    plain = error(fitted(LSQ(bits, signed=True), x), x)
    assert error(fitted(LSQPlus(bits, signed=True), x), x) < 0.5 * plain


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_its_start_is_the_best_of_all_grids(bits):
    x, p = F.silu(torch.randn(4000) * 1.5 - 0.5), 2**bits - 1
    least = 1.0
    for zero in range(p + 1):
        for step in torch.linspace(0.01, 1.5 * float(x.max()) / p, 300):
            y = step * torch.round(x / step).clamp(-zero, p - zero)
            least = min(least, float((y - x).square().mean() / x.square().mean()))
    assert error(fitted(LSQPlus(bits, signed=True), x), x) <= 1.01 * least


def test_a_percentile_is_the_end_that_lies_farther_from_zero():
    x = F.gelu(torch.randn(20_000))
    q = fitted(LSQPlus(4, signed=True), x, percentile(99))
    low, high = (float(bound.detach()) for bound in q.bounds(x))
    assert high == pytest.approx(float(x.abs().kthvalue(19_800).values), rel=1e-5) and -0.3 < low < 0


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize(
    ("x", "ends"),
    [
        (torch.zeros(50), None),
        (torch.full((50,), -2.0), (-2.0, 0.0)),
        (torch.full((50,), 3.0), (0.0, 3.0)),
        (torch.tensor([1e-30]), None),
        (-torch.arange(1.0, 51.0), None),
    ],
)
def test_degenerate_values_give_a_range_too(x, ends, bits):
    q = LSQPlus(bits, signed=True)
    q.fit(x, least_squares)
    low, high = (float(bound.detach()) for bound in q.bounds(x))
    assert low <= 0 <= high and high - low > 0 and q(torch.randn(9)).isfinite().all()
    assert ends is None or (low, high) == pytest.approx(ends)


def test_ranges_by_row_are_those_of_the_rows():
    x = F.silu(torch.randn(3, 400)) * torch.tensor([[1.0], [0.1], [4.0]])
    whole = LSQPlus(3, signed=True, shape=(3, 1))
    whole.fit(x, least_squares)
    for row, y in zip(x, whole(x), strict=True):
        q = LSQPlus(3, signed=True)
        q.fit(row, least_squares)
        torch.testing.assert_close(q(row), y)


def test_training_moves_both_towards_the_values():
    x = F.silu(torch.randn(64, 50))
    q = LSQPlus(3, signed=True)
    q.set_clip(torch.tensor(4.0))
    q.calibrated = True
    start = error(q, x)
    optimizer = torch.optim.Adam(q.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (q(x) - x).square().mean().backward()
        optimizer.step()
    assert error(q, x) < 0.35 * start and int(q.zero()) == 1


def test_it_is_for_activations():
    with pytest.raises(ValueError, match=r"LSQPlus was given .* LSQ"):
        spequant.prepare(nn.Sequential(nn.Linear(4, 4)), weight=LSQPlus(2), act=PACT(2))


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


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
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


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("made", "bits", "engine"),
    [
        (network, 1, "onnxruntime"),
        (network, 2, "onnxruntime"),
        (network, 8, "onnxruntime"),
        (network, 2, "openvino"),
        pytest.param(network, 4, "onnxruntime", marks=SLOW),
        pytest.param(resnet, 4, "onnxruntime", marks=SLOW),
        pytest.param(network, 1, "openvino", marks=SLOW),
        pytest.param(network, 4, "openvino", marks=SLOW),
        pytest.param(network, 8, "openvino", marks=SLOW),
        pytest.param(resnet, 4, "openvino", marks=SLOW),
    ],
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
        (Grid(0.5, -1, 2), 128),
        (Grid(0.5, 0, 235, Home(8, 256, -10.0, 117.5)), 20),  # what ReLU leaves stays beside the others
        (Grid(0.5, 0, 127, Home(8, 255, -63.5, 63.5)), 128),
    ],
)
def test_codes_are_stored_in_a_byte(grid, zero):
    assert grid.zero == zero
    codes = torch.tensor([grid.low, 0, grid.high])
    assert stored(codes, grid).tolist() == (codes + zero).tolist()
