"""What every quantizer shares: bits, levels, dtypes, state, copies; and a quantizer that a user writes."""

import copy
import pickle

import pytest
import torch
from torch import nn

import spequant
from spequant.quantizers import LSQ, PACT, MinMax, Quantizer, least_squares
from spequant.quantizers.base import level_tensor
from support.quantizing import ready


@pytest.mark.parametrize("bits", [0, 9, 2.5, True, "2"])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f"bits is {bits!r}; .* from 1 to 8"):
        PACT(bits)


def test_bits_none_is_float():
    x = torch.randn(10)
    assert PACT(None)(x) is x


def test_a_forward_without_a_range_is_refused():
    q = PACT(2)
    q.name = "layer1.conv2"
    with pytest.raises(RuntimeError, match=r"layer1\.conv2 has no range yet"):
        q(torch.ones(2))


@pytest.mark.parametrize(
    ("q", "high", "levels"),
    [
        (PACT(2, signed=False), 8, 256),
        (PACT(3, signed=False), 8, 253),
        (PACT(4, signed=False), 8, 256),
        (PACT(2, signed=True), 8, 255),
        (PACT(2, signed=False), 3, 7),
        (PACT(4, signed=False), 2, 4),
        (LSQ(2, signed=True), 8, 256),
    ],
)
def test_levels_at_another_width(q, high, levels):
    assert q.levels_at(high) == levels


def test_switching_precision_leaves_the_bounds():
    q = ready(PACT(2, signed=False), 1.7)
    x = torch.rand(1000) * 2
    before, q.levels = q.bounds(x), level_tensor(256)
    assert torch.equal(torch.stack(q.bounds(x)), torch.stack(before)) and len(q(x).unique()) > 100


@pytest.mark.parametrize("move", [lambda q: q.half(), lambda q: q.to(torch.bfloat16), lambda q: q.double()])
def test_dtype_moves_leave_the_state_in_fp32(move):
    for q in (PACT(2, signed=False), LSQ(2, signed=False), MinMax(8, signed=False)):
        move(ready(q, 1.7))
        assert all(t.dtype == torch.float32 for t in (*q.parameters(), *q.buffers(), q.levels))


def test_low_precision_input_is_quantized_in_fp32():
    x = torch.randn(4000).bfloat16()
    q = ready(PACT(8, signed=True), 2.7)
    y = q(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, q(x.float()).bfloat16())


def test_state_round_trip_and_other_bits_refused():
    q = PACT(2)
    q.set_signed(True)
    q.fit(torch.randn(1000), least_squares)
    fresh = PACT(2)
    fresh.load_state_dict(q.state_dict())
    x = torch.randn(100)
    assert fresh.calibrated and fresh.signed and torch.equal(fresh(x), q(x))
    with pytest.raises(ValueError, match=r"^conv: .* 2 bits, .* 4"):
        torch.nn.ModuleDict({"conv": PACT(4)}).load_state_dict(torch.nn.ModuleDict({"conv": q}).state_dict())


def test_copies_and_pickles_but_not_while_switched():
    q = ready(LSQ(2, signed=False), 1.5)
    x = torch.rand(50)
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(other(x), q(x)) and other.levels is other.home_levels
    q.levels = level_tensor(256)
    for refused in (copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="inside a precision context"):
            refused(q)


class Thirds(Quantizer):
    """A quantizer that a user writes, with constant bounds."""

    stored = False

    def bounds(self, x):
        return torch.tensor(0.0), torch.tensor(3.0)


def test_a_users_own_quantizer():
    q = Thirds(2, signed=False)
    assert q(torch.tensor([-1.0, 0.4, 0.6, 2.2, 9.0])).tolist() == [0, 0, 1, 2, 3]
    with pytest.raises(TypeError, match="must define bounds"):
        ready(Quantizer(2, signed=False))(torch.ones(1))


@pytest.mark.parametrize("kind", [PACT, LSQ])
def test_a_range_stays_a_range_when_a_step_carries_it_below_zero(kind):
    q = kind(2, signed=False)
    q.fit(torch.rand(100), least_squares)
    x = torch.rand(64, 4)
    expected = q(x)
    with torch.no_grad():
        next(q.parameters()).neg_()
    assert torch.equal(q(x), expected)


def test_a_move_inside_a_precision_context_leaves_the_home_grid():
    """The device "meta" stands for one that this machine lacks."""
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 4)), weight=None, act=PACT(2), ends=2)
    spequant.calibrate(model, [torch.rand(64, 4)], samples=64)
    with spequant.precision(model, spequant.Fixed(8)):
        model.to("meta")
        assert model[0].act_quantizer.levels is not model[0].act_quantizer.home_levels
    copy.deepcopy(model)
    q = model[0].act_quantizer
    assert q.levels is q.home_levels and q.levels.device.type == "meta"


def test_a_kind_whose_config_lacks_an_argument_is_refused():
    class Scaled(PACT):
        def __init__(self, bits, scale=1.0, **settings):
            super().__init__(bits, **settings)
            self.scale = scale

    with pytest.raises(TypeError, match=r"Scaled\.config\(\) lacks scale"):
        Scaled(2, scale=5.0).like(bits=4)


def test_frozen_elements_keep_their_codes():
    """However far the weight moves, at home bits and on the finer grid of other bits."""
    q = ready(LSQ(2).like(of_weight=True), 1.0)
    w = torch.randn(50)
    codes, values = q.encode(w), q(w).detach()
    q.hold_codes(codes)
    assert not q.frozen.any() and torch.equal(q(w), values)
    q.frozen[:10] = True
    moved = w + 5
    assert torch.equal(q(moved)[:10], values[:10]) and torch.equal(q.encode(moved)[:10], codes[:10])
    assert (q(moved)[10:] == values.max()).all()
    q.levels = level_tensor(q.levels_at(4))
    torch.testing.assert_close(q(moved)[:10], values[:10])
