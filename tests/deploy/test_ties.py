"""What is made of codes: after `align_ranges` nothing lies near a tie, and fp32 gives it the same code in any order."""

import itertools
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from spequant.deploy import FORMATS, Twin, align_ranges, lower, quantize_biases
from spequant.deploy.engines import ENGINES
from spequant.deploy.grids import Grid
from spequant.deploy.operations import Add, AvgPool, Mean, Mul
from spequant.deploy.ties import Rounding
from spequant.models.residual import ResidualAdd
from spequant.quantizers import LSQ, PACT, DoReFa, MinMax
from support.residual import Residual, X, prepared, program_of

SLOW = pytest.mark.slow

F = np.float32


def in_some_order(a, b, result):
    """Codes that fp32 gives to the sums of all codes of `a` and `b`, in each of the ways that engines are seen to take;
    before they are clipped."""
    x, y = (np.arange(grid.low, grid.high + 1, dtype=F) for grid in (a, b))
    x, y = x[:, None], y[None, :]
    p, q, r = (F(grid.step) for grid in (a, b, result))
    moved = (x - F(a.low)) * p + F(a.low) * p
    return [
        (x * p + y * q) / r,
        (x * p + y * q) * (F(1) / r),
        x * (p / r) + y * (q / r),
        (moved + y * q) * (F(255) / (F(255) * r)),
        (y * (q / p) + x) / (r / p),
    ]


def exact(a, b, result):
    """How far each sum is from the middle between two codes, as a fraction of a code."""
    p, q = (Fraction(grid.step) / Fraction(result.step) for grid in (a, b))
    for x, y in itertools.product(range(a.low, a.high + 1), range(b.low, b.high + 1)):
        value = x * p + y * q
        if result.low < value < result.high:
            yield abs(value - value.__floor__() - Fraction(1, 2))


def near_tie(a, b, result):
    return Rounding(Add, (a, b), (result,)).near_tie()


def sums(model):
    return [
        (*(i.grid for i in op.inputs), op.grid)
        for op in lower(model, X[:1]).ops
        if isinstance(op, Add) and op.of_codes and op.grid is not None
    ]


def products_and_means(model):
    """As `Rounding`, and the operations' names."""
    for op in lower(model, X[:1]).ops:
        if isinstance(op, Mul | Mean | AvgPool) and op.grid is not None and all(i.grid for i in op.inputs):
            count = 9 if isinstance(op, AvgPool) else 1 if isinstance(op, Mul) else 100
            kind = Mul if isinstance(op, Mul) else Mean
            yield Rounding(kind, tuple(i.grid for i in op.inputs), (op.grid,), count)


class Chain(nn.Module):
    """Sums of sums, and one of two layers, without a ReLU between."""

    def __init__(self):
        super().__init__()
        self.first, self.shortcut = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.sums, self.last = nn.ModuleList(ResidualAdd() for _ in range(3)), nn.Linear(4, 3)

    def forward(self, x):
        y = self.first(x)
        for i, (layer, add) in enumerate(zip(self.layers, self.sums, strict=True)):
            y = add(layer(torch.relu(y)), self.shortcut(y) if i == 1 else y)
        return self.last(y.mean((2, 3)))


class Twice(nn.Module):
    """Both addends are results of sums, in the last one of the same."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(n, 4, 3, padding=1) for n in (1, 4, 4))
        self.sums, self.last = nn.ModuleList(ResidualAdd() for _ in range(4)), nn.Linear(4, 3)

    def forward(self, x):
        a = self.layers[0](x)
        b = self.sums[0](self.layers[1](a), a)
        c = self.sums[1](self.layers[2](b), b)
        y = self.sums[3](self.sums[2](c, b), b)
        return self.last(y.mean((2, 3)))


class Gated(nn.Module):
    """A product of codes, the mean of all positions in it, and an average pooling."""

    def __init__(self):
        super().__init__()
        self.first, self.reduce, self.expand = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.gate, self.layer, self.last = nn.Sigmoid(), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 9, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        gate = self.gate(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        x = torch.relu(self.layer(x * gate))
        return self.last(nn.functional.avg_pool2d(x, 3).flatten(1))


def near_ties_of(model):
    return [rounding for rounding in products_and_means(model) if rounding.near_tie()]


@pytest.mark.parametrize("bits", [4, 8])
def test_no_product_and_no_mean_lies_near_a_tie(bits):
    model = prepared(bits, PACT, Gated, between=8)
    assert near_ties_of(model)
    moved = align_ranges(model, X[:1])
    assert moved and all(abs(factor - 1) < 1 / 8 for factor in moved.values())
    assert len(list(products_and_means(model))) == 2 and not near_ties_of(model)
    assert align_ranges(model, X[:1]) == {}


def test_a_product_by_fractions():
    """17 * 15 = 255 of 510 is a half; of 511 nothing is."""
    a, b = Grid(1 / 17, 0, 17), Grid(0.1, 0, 15)
    for step, near in ((0.1 * 510 / 17, True), (0.1 * 511 / 17, False)):
        assert Rounding(Mul, (a, b), (Grid(step, 0, 15),)).near_tie() == near
    for count, near in ((4, True), (9, False)):
        assert Rounding(Mean, (Grid(0.5, 0, 3),), (Grid(0.5, 0, 15),), count).near_tie() == near


@pytest.mark.parametrize("network", [Residual, Chain])
@pytest.mark.parametrize(
    ("bits", "act"),
    [(2, PACT), (4, LSQ), *(pytest.param(*more, marks=SLOW) for more in ((8, MinMax), (3, PACT), (2, LSQ)))],
)
def test_no_sum_lies_near_a_tie(network, bits, act):
    model = prepared(bits, act, network)
    assert any(near_tie(*grids) for grids in sums(model))
    moved = align_ranges(model, X[:1])
    after = sums(model)
    assert after and not any(near_tie(*grids) for grids in after)
    assert moved and all(0 < abs(factor - 1) < 1 / 8 for factor in moved.values())
    assert align_ranges(model, X[:1]) == {}
    for a, b, result in after:
        first, *others = (np.rint(x).clip(result.low, result.high) for x in in_some_order(a, b, result))
        assert all(np.array_equal(first, other) for other in others)


SEEN = Grid(0.027088582515716553, -127, 127), Grid(0.01860666833817959, 0, 255), Grid(0.019915852695703506, 0, 255)
"""Of a ResNet-20 on CIFAR-10 whose sums lay near ties: 5 and 35 make 39.500005, and were a frequent pair."""


def test_where_orders_of_fp32_differ_there_is_a_near_tie():
    draws, differing = np.random.default_rng(0), 0
    for p, q in draws.uniform(0.3, 1.5, (400, 2)):
        a, b, result = Grid(float(F(p)), -127, 127), Grid(float(F(q)), 0, 255), Grid(1.1, 0, 255)
        first, *others = (np.rint(x).clip(0, 255) for x in in_some_order(a, b, result))
        if not all(np.array_equal(first, other) for other in others):
            differing += 1
            assert near_tie(a, b, result)
    assert differing > 20


@pytest.mark.parametrize(
    ("a", "b", "result", "near"),
    [
        (*SEEN, True),
        (Grid(1391 / 1023, -127, 127), Grid(956 / 1023, 0, 255), Grid(1.0, 0, 255), False),
        (Grid(1391 / 1022, -127, 127), Grid(956 / 1022, 0, 255), Grid(1.0, 0, 255), True),  # 511 units: half a step
        (Grid(0.5, -3, 3), Grid(0.25, 0, 15), Grid(1.0, 0, 15), True),
        (Grid(0.5, -3, 3), Grid(0.25, 0, 15), Grid(1.0, 0, 0), False),  # one code, no middle
        (Grid(0.3, -7, 7), Grid(0.2, 0, 15), Grid(0.5, -7, 7), False),
    ],
)
def test_a_near_tie_is_one_by_fractions(a, b, result, near):
    distances = exact(a, b, result)
    assert near_tie(a, b, result) == near == (min(distances, default=1) < 2**-21 * max(result.high, -result.low))


def test_nothing_moves_next_to_a_range_that_is_fixed():
    model = prepared(8, DoReFa, Gated, between=8)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert align_ranges(model, X[:1]) == {}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_steps_that_are_powers_of_two_stay():
    model = prepared(4, partial(PACT, power_of_two=True), Chain)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert align_ranges(model, X[:1]) == {}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_first_sums_of_a_chain_are_settled():
    model = prepared(8, PACT, Twice)
    moved = align_ranges(model, X[:1])
    assert align_ranges(model, X[:1]) == {} and moved
    first, second, *_ = sums(model)
    assert not near_tie(*first) and not near_tie(*second)


@pytest.mark.parametrize("network", [Residual, Chain])
def test_the_network_has_the_codes_of_its_program(network):
    model = prepared(2, PACT, network)
    align_ranges(model, X[:1])
    program = program_of(model)
    torch.testing.assert_close(Twin(program)(X), model(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "engine"), [("openvino", "openvino"), ("onnx", "onnxruntime")])
def test_engines_have_the_codes_of_the_program(name, engine):
    pytest.importorskip(engine)
    model = prepared(2, PACT, Chain)
    align_ranges(model, X[:1])
    quantize_biases(model, X[:1])
    program = lower(model, X[:1])
    graphs = FORMATS[name].graphs
    assert graphs is not None
    whole = graphs.whole(program)
    got = ENGINES[engine](whole.data)({"input": X.numpy()})[0]
    np.testing.assert_allclose(got, Twin(program)(X).numpy(), rtol=1e-5, atol=1e-5)
