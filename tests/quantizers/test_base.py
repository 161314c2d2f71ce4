"""What every quantizer shares: bits, levels, dtypes, state, copies; and a quantizer that a user writes."""

import copy
import pickle
import zlib

import pytest
import torch
from torch import nn

import spequant
from spequant.quantizers import LSQ, PACT, SAWB, APoT, DoReFa, LeastSquares, MinMax, Quantizer, least_squares
from spequant.quantizers.base import level_tensor
from spequant.quantizers.held import Held
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
        (PACT(2, signed=False, power_of_two=True), 8, 193),
        (PACT(2, signed=True, power_of_two=True), 8, 129),
        (PACT(4, signed=False, power_of_two=True), 2, 4),
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


OPTIONS = {
    "zero": lambda zero: LeastSquares(2, zero=zero, of_weight=True),
    "percentile": lambda whole: MinMax(4, percentile=100 if whole else 90, of_weight=True),
    "levels": lambda odd: ready(Held(2, levels=3 if odd else 4, signed=True)),
}
POWERS = {"lsq": LSQ, "min-max": MinMax}


@pytest.mark.parametrize("make", OPTIONS.values(), ids=OPTIONS)
def test_a_state_of_a_quantizer_with_other_options_is_refused(make):
    q = nn.ModuleDict({"conv": make(True)})
    nn.ModuleDict({"conv": make(True)}).load_state_dict(q.state_dict())
    other = nn.ModuleDict({"conv": make(False)})
    for a, b in ((q, other), (other, q)):
        with pytest.raises(ValueError, match=r"^conv: .* another kind .*="):
            a.load_state_dict(b.state_dict())
    older = q.state_dict()
    older["conv._extra_state"][4] = zlib.crc32(type(q["conv"]).__qualname__.encode())  # without options
    other.load_state_dict(older)


@pytest.mark.parametrize("kind", POWERS.values(), ids=POWERS)
def test_a_state_of_other_steps_is_refused(kind):
    q, other = (nn.ModuleDict({"conv": kind(4, of_weight=True, power_of_two=p)}) for p in (True, False))
    copy.deepcopy(q).load_state_dict(q.state_dict())
    for a, b in ((q, other), (other, q)):
        with pytest.raises(ValueError, match=r"^conv: .* another kind "):
            a.load_state_dict(b.state_dict())


def test_options_that_leave_the_values_alone_may_differ():
    for a, b in (
        (PACT(2, decay=0.1), PACT(2)),
        (MinMax(8, percentile=90), MinMax(8)),
        (SAWB(2, clip_gradient=True), SAWB(2)),
    ):
        a.load_state_dict(b.state_dict())


@pytest.mark.parametrize("kind", [PACT, LSQ, MinMax, DoReFa])
def test_a_sign_for_which_one_bit_is_too_few_changes_nothing(kind):
    q = kind(1)
    q.name = "conv"
    q.set_signed(False)
    with pytest.raises(ValueError, match=rf"^conv: {kind.__name__} at 1 bit"):
        q.set_signed(True)
    assert q.signed is False and int(q.levels) == 2


def test_a_network_made_without_values_has_its_grids():
    """`to_empty` gives tensors of any values; weights are then loaded or drawn."""
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tables = spequant.prepare(network, weight=APoT(4), act=None, ends=4).to_empty(device="cpu").modules()
    assert [q.points.tolist() for q in tables if isinstance(q, APoT)] == [APoT(4).points.tolist()] * 2
    model = spequant.prepare(network, weight=LSQ(2), act=PACT(3, signed=False)).to_empty(device="cpu")
    quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
    assert [int(q.home_levels) for q in quantizers] == [256, 256, 256, 256]
    assert all(q.levels is q.home_levels for q in quantizers)
    with torch.no_grad():
        for layer in model:
            nn.init.normal_(layer.layer.weight)
            nn.init.zeros_(layer.layer.bias)
    spequant.calibrate(model, [torch.rand(64, 4)], samples=64)
    assert torch.isfinite(model(torch.rand(8, 4))).all()
