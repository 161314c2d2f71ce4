"""Properties of the grids of all quantizers, over random ranges, bits and values."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spequant.functional import dequantize
from spequant.quantizers import CSQ, LSQ, PACT, SAWB, APoT, DoReFa, LeastSquares, LSQPlus, MinMax, least_squares
from spequant.quantizers.base import level_tensor
from spequant.quantizers.ranges import largest
from support.quantizing import fitted

ACTS = (PACT, LSQ, LSQPlus, MinMax, DoReFa)
quick = settings(max_examples=60, deadline=None, derandomize=True)
grids = given(
    kind=st.sampled_from(ACTS),
    signed=st.booleans(),
    bits=st.integers(1, 8),
    clip=st.floats(2**-10, 1024, width=32),
    seed=st.integers(0, 2**16),
)


def make(kind, signed, bits, clip, seed):
    """A quantizer with its range, and values inside and outside the range."""
    q = kind(max(bits, 2) if signed else bits, signed=signed)
    if q.stored:
        q.set_clip(torch.tensor(clip))
        q.calibrated = True
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * clip
    return q, x


@quick
@grids
def test_activation_grids(kind, signed, bits, clip, seed):
    q, x = make(kind, signed, bits, clip, seed)
    low, high = (bound.detach() for bound in q.bounds(x))
    y = q(x).detach()
    assert len(y.unique()) <= 2**q.bits
    assert q(torch.zeros(3)).eq(0).all()
    assert (y >= low * (1 + 1e-6)).all() and (y <= high * (1 + 1e-6)).all()
    assert (q(x.sort().values).detach().diff() >= 0).all()
    assert torch.equal(q(y), y)
    finer = q.encode(torch.linspace(float(low), float(high), 4096))
    assert finer.min() == 0 and finer.max() == q.levels - 1


@quick
@grids
def test_the_teachers_grid_contains_the_students(kind, signed, bits, clip, seed):
    q, x = make(kind, signed, bits, clip, seed)
    y = q(x).detach()
    for high_bits in range(q.bits, 9):
        q.levels = level_tensor(q.levels_at(high_bits))
        assert torch.equal(q(y).detach(), y)


@quick
@grids
def test_zero_stays_on_the_grid_at_fewer_bits(kind, signed, bits, clip, seed):
    q, x = make(kind, signed, bits, clip, seed)
    for low_bits in range(2 if signed else 1, q.bits):
        q.levels = level_tensor(q.levels_at(low_bits))
        assert q(torch.zeros(3)).eq(0).all() and len(q(x).unique()) <= 2**low_bits


@quick
@given(
    bits=st.integers(1, 8),
    step=st.floats(2**-10, 1024, width=32),
    share=st.floats(-0.5, 1.5),
    seed=st.integers(0, 2**16),
)
def test_a_grid_with_any_offset_contains_zero_and_its_home_levels_at_all_bits(bits, step, share, seed):
    """The offset would put `share` of the grid below zero; training may carry it beyond 0 and 1."""
    q = LSQPlus(bits, signed=True)
    p = 2**bits - 1
    with torch.no_grad():
        q.step.fill_(step)
        q.offset.fill_(-share * p * step)
    q.calibrated = True
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * step * p
    y, ends = q(x).detach(), torch.stack(q.bounds(x)).detach()
    assert torch.equal(q(y).detach(), y) and len(y.unique()) <= 2**bits
    below = torch.round(-ends[0] / step)
    assert 0 <= below <= p and abs(float(ends[1] - ends[0]) - p * step) <= 1e-5 * p * step
    assert abs(float(below * step + ends[0])) <= 1e-5 * p * step
    for width in range(1, 9):
        q.levels = level_tensor(q.levels_at(width))
        assert q(torch.zeros(3)).eq(0).all() and torch.equal(torch.stack(q.bounds(x)).detach(), ends)
        assert len(q(x).unique()) <= 2**width
        codes = q.encode(x)
        assert codes.min() >= 0 and codes.max() <= q.levels - 1
        if width >= bits:
            assert torch.equal(q(y).detach(), y)


@pytest.mark.parametrize("kind", [SAWB, LSQ, LeastSquares, MinMax, PACT])
@quick
@given(bits=st.integers(2, 8), seed=st.integers(0, 2**16), scale=st.floats(2**-10, 128, width=32))
def test_weight_grids(kind, bits, seed, scale):
    w = torch.randn(300, generator=torch.Generator().manual_seed(seed)) * scale
    q = kind(bits).like(of_weight=True)
    if q.stored:
        q.set_clip(w.abs().max())
    q.calibrated = True
    y = q(w).detach()
    assert len(y.unique()) <= 2**bits
    order = w.argsort()
    assert (y[order].diff() >= 0).all()
    low, high = (bound.detach() for bound in q.bounds(w))
    codes = q.encode(w)
    assert codes.min() >= 0 and codes.max() <= q.levels - 1 and torch.equal(codes, codes.round())
    assert (y >= low - 1e-5 * scale).all() and (y <= high + 1e-5 * scale).all()


def is_power(step):
    """Whether each fp32 number is a power of two, or zero."""
    return torch.isin(step.frexp().mantissa, torch.tensor([0.0, 0.5])).all()


@settings(quick, max_examples=30)
@grids
@torch.no_grad()
def test_steps_are_powers_of_two_at_all_bits_and_nest(kind, signed, bits, clip, seed):
    q, x = make(partial(kind, power_of_two=True), signed, bits, clip, seed)
    y, before = q(x).detach(), torch.inf
    for width in range(2 if signed else 1, 9):
        q.levels = level_tensor(q.levels_at(width))
        low, high = q.grid_bounds(x)
        step = (high - low) / (q.levels - 1)
        assert is_power(step) and step < before
        assert q(torch.zeros(3)).eq(0).all() and q.levels <= 2**width and q.encode(x).max() <= q.levels - 1
        if width >= q.bits:
            assert torch.equal(q(y).detach(), y) and torch.equal((y / step).round(), y / step)
        before = step


@pytest.mark.parametrize("kind", [SAWB, LSQ, LeastSquares, MinMax, PACT, CSQ, DoReFa, APoT])
@settings(quick, max_examples=8)
@given(bits=st.integers(2, 6), seed=st.integers(0, 2**16), scale=st.floats(2**-10, 128, width=32))
@torch.no_grad()
def test_steps_of_weights_are_powers_of_two_in_each_channel(kind, bits, seed, scale):
    w = torch.randn(4, 60, generator=torch.Generator().manual_seed(seed)) * scale
    q = kind(bits).like(of_weight=True, shape=(4, 1), power_of_two=True)
    q.fit(w, largest)
    low, high = q.grid_bounds(w)
    assert is_power((high - low) / (q.levels - 1)) and len(q(w).unique()) <= 4 * 2**bits
    assert torch.equal(dequantize(q.encode(w), low, high, q.levels), q(w))


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("kind", [SAWB, LSQ, DoReFa, LeastSquares, MinMax, CSQ, APoT])
def test_one_range_per_channel_equals_a_loop_over_channels(kind, shape):
    w = torch.randn(8, 4, 3, 3) * torch.logspace(-2, 1, max(shape)).view(shape)
    axis = shape.index(max(shape))
    per_channel = fitted(kind(3).like(of_weight=True, shape=shape), w, least_squares)
    parts = [fitted(kind(3).like(of_weight=True), part, least_squares)(part) for part in w.split(1, dim=axis)]
    torch.testing.assert_close(per_channel(w), torch.cat(parts, dim=axis), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("shape", [(), (16, 1, 1, 1)])
def test_autocast_changes_no_weight(bits, shape):
    w = torch.randn(16, 8, 3, 3)
    kinds = [SAWB, MinMax, DoReFa, LSQ, CSQ, LeastSquares, lambda *a, **k: LeastSquares(*a, zero=False, **k)]
    for kind in kinds if bits > 6 else [*kinds, APoT]:
        q = fitted(kind(bits, of_weight=True, shape=shape), w, least_squares)
        expected = q(w)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(q(w), expected), q
            q.fit(w, least_squares)
        assert torch.equal(q(w), expected), q
