"""Numbers of C programs: sums to codes as the twin has them, weights that come back from their bits, kernels' text."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spequant.deploy.c.rounding import code_sum, rounding, thresholds
from spequant.deploy.c.tensors import Call
from spequant.deploy.c.text import dot, kernels_of
from spequant.deploy.c.weights import lanes_for, packed, weights_of
from spequant.deploy.grids import Grid
from spequant.deploy.operations import Input, Weighted


def layer(weight, scale):
    """A linear layer on codes 0 .. 3."""
    source = Input("x", (), Grid(0.5, 0, 3), (1, weight.shape[1]))
    scale = torch.tensor(scale, dtype=torch.float64)
    return Weighted("layer", (source,), Grid(0.25, 0, 3), (1, len(weight)), weight, scale, torch.zeros_like(scale))


def by_rounding(how, sums):
    """What `net_rounded` gives."""
    if how.steps is not None:
        return (sums[None, :, None] >= how.steps[:, None, :]).sum(-1)
    value = sums[None] * how.multipliers[:, None] + how.offsets[:, None]
    codes = value >> how.shifts[:, None]
    if how.even:
        codes = codes - ((value % (1 << how.shifts[:, None]) == 0) & (codes % 2 == 1))
    return codes.clip(how.low, how.top) - how.low


@settings(deadline=None)
@given(
    st.floats(2.0**-18, 2.0**2),
    st.integers(-3000, 3000),
    st.tuples(st.integers(-128, 0), st.integers(1, 127)),
    st.integers(-50, 50),
)
def test_sums_become_the_twins_codes(factor, bias, ends, moved):
    """Of few codes all; of many all but those that are counted."""
    low, high = ends
    slope = np.float32(factor)

    def twin(sums):
        return (sums + bias).astype(np.float32) * slope

    first, last = np.asarray([-4000]), np.asarray([4000])
    how = rounding(twin, np.asarray([float(slope)]), first, last, low, high, np.asarray([moved]))
    sums = np.arange(first[0], last[0] + 1)
    exact = twin(sums)
    wrong = by_rounding(how, sums - moved)[0] != np.rint(exact).clip(low, high) - low
    assert int(wrong.sum()) <= how.unequal and (how.unequal == 0 or high - low >= 16)
    assert (np.abs(exact - np.floor(exact) - 0.5)[wrong] < 2e-4).all()  # ties, which the twin has rounded in fp32


@pytest.mark.parametrize("power", range(-12, 1))
def test_scales_that_are_powers_of_two_have_no_tie_of_their_own(power):
    slope = np.float32(2.0**power)
    ends = np.asarray([-(2**19)]), np.asarray([2**19])
    zero = np.zeros(1, np.int64)
    how = rounding(lambda s: s.astype(np.float32) * slope, np.asarray([float(slope)]), *ends, -128, 127, zero)
    sums = np.arange(-4096, 4097)
    assert how.unequal == 0
    assert (by_rounding(how, sums)[0] == np.rint(sums * 2.0**power).clip(-128, 127) + 128).all()


def test_steps_are_where_a_code_begins():
    at = thresholds(lambda s: s.astype(np.float32) * np.float32(0.3), np.asarray([0]), np.asarray([9]), 0, 4)
    assert at.tolist() == [[2, 5, 9, 10]]  # 0.6, 1.5 to the even code, 2.7; 3.5 is never reached


@pytest.mark.parametrize(
    ("units", "sum_ends"), [((0.5, 0.25), (0, 3)), ((0.0173, 0.0091), (-7, 7)), ((1.5, 0.5), (0, 255))]
)
def test_additions_of_all_pairs(units, sum_ends):
    units = np.float32(units[0]), np.float32(units[1])
    ends = (-127, 127), (0, 255), sum_ends
    how = code_sum(units, ends)
    a, b = np.arange(-127, 128)[:, None], np.arange(256)[None, :]
    value = (a + 127) * how.first + b * how.second + how.offset
    codes = value >> how.shift
    codes -= ((value & ((1 << how.shift) - 1)) == 0) & (codes % 2 == 1)
    codes = codes.clip(*sum_ends)
    for first, second, stored in () if how.exceptions is None else how.exceptions:
        codes[first, second] = int(stored) + sum_ends[0]
    twin = np.rint(a.astype(np.float32) * units[0] + b.astype(np.float32) * units[1]).clip(*sum_ends)
    assert how.unequal == 0 and (codes == twin).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_weights_come_back_from_their_bits(bits):
    values = torch.randint(0, 2**bits, (3, 11)) - 2 ** (bits - 1)
    values[:, :2] = torch.tensor([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1])
    w = weights_of(layer(values.to(torch.int16), [0.1, -0.2, 0.3]))
    assert w.bits == bits and w.row == w.chunks * w.chunk * bits // 8
    stream = np.unpackbits(packed(w), axis=1, bitorder="little").reshape(3, -1, bits)
    stored = (stream << np.arange(bits)).sum(-1)[:, :11]
    sign = np.asarray([[1], [-1], [1]])
    assert (w.lows[:, None] + w.step * stored == sign * values.numpy()).all()


def test_weights_without_zero_are_odd():
    w = weights_of(layer(torch.tensor([[-3, -1, 1, 3]], dtype=torch.int16), [0.1]))
    assert (w.bits, w.step, w.lows.tolist(), w.stored.tolist()) == (2, 2, [-3], [[0, 1, 2, 3]])


@pytest.mark.parametrize(
    ("bits", "codes", "positions", "lanes"),
    [
        (2, 3, 64, (4, 8)),
        (2, 3, 2, (2, 16)),
        (2, 3, 1, (1, 32)),
        (2, 15, 64, (4, 8)),
        (2, 255, 64, (2, 16)),
        (8, 15, 64, (2, 16)),
        (8, 255, 64, (2, 32)),
        (7, 255, 64, (1, 32)),
        (8, 255, 1, (1, 32)),
    ],
)
def test_products_of_several_positions_stay_in_their_lanes(bits, codes, positions, lanes):
    values = torch.randint(0, 2**bits, (2, 40))
    values[:, 0], values[:, 1] = 0, 2**bits - 1
    w = weights_of(layer(values.to(torch.int16), [0.1, 0.1]))
    how = lanes_for(w, codes, positions)
    assert (how.count, how.bits) == lanes
    assert how.bits == 32 or how.run * w.chunk * w.largest * codes < 2**how.bits


def test_sums_that_no_int32_holds_are_refused():
    weight = torch.randint(-127, 128, (1, 60000)).to(torch.int16)
    op = layer(weight, [0.1])
    op.inputs[0].grid = Grid(0.5, -128, 127)
    with pytest.raises(ValueError, match=r"layer: .* reach"):
        weights_of(op)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("lanes", [(1, 32), (2, 16), (4, 8)])
def test_each_kernel_of_products_is_whole(lanes, bits):
    text = dot(*lanes, bits)
    assert f"net_dot{lanes[0]}_w{bits}(" in text and "@" not in text
    assert text.count("net_pair(") == (32 // bits if lanes[0] == 2 and bits in (1, 2, 4, 8) else 0)


@pytest.mark.parametrize(
    ("how", "pairs"), [((2, 16, 3), 0), ((2, 16, 4), 1), ((2, 32, 8), 1), ((4, 8, 2), 0), ((1, 32, 8), 0)]
)
def test_pairs_are_there_only_for_kernels_that_use_them(how, pairs):
    """What nobody calls is a warning of the compiler."""
    text = "\n".join(kernels_of([Call("conv", "layer", (), (), {"dot": how})]))
    assert text.count("static void net_pair_up(") == pairs and (text.count("net_pair_up(x") > 0) == pairs
