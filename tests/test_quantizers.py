"""Each quantizer against its literal twin, value and gradient; state, precision, calibration rules."""

import copy
import pickle

import numpy as np
import pytest
import torch

import spequant
from reference import quantizers as literal
from spequant.functional import dequantize, fake_quantize, quantize
from spequant.models import resnet8
from spequant.quantizers import (
    CSQ,
    LSQ,
    PACT,
    SAWB,
    APoT,
    DoReFa,
    LeastSquares,
    MinMax,
    Quantizer,
    least_squares,
    percentile,
    set_ewgs,
)
from spequant.quantizers.base import level_tensor
from spequant.quantizers.lsq import paper_start
from spequant.quantizers.sawb import COEFFICIENTS

BITS = range(1, 9)


def tensors(n=2000, scale=1.0):
    """x (double on fp32 values), its fp32 leaf, and a random output gradient."""
    x = (torch.randn(n) * scale).requires_grad_()
    return x.detach().double().numpy(), x, torch.randn(n)


def ready(q, clip=None):
    if clip is not None:
        q.set_clip(torch.as_tensor(clip))
    q.calibrated = True
    return q


def close(tensor, array, atol=1e-5):
    np.testing.assert_allclose(tensor.detach().double().numpy(), array, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_pact(bits, signed):
    if signed and bits == 1:
        with pytest.raises(ValueError, match="PACT at 1 bit"):
            PACT(1, signed=True)
        return
    x, leaf, grad = tensors()
    q = ready(PACT(bits, signed=signed), 1.3)
    y = q(leaf)
    y.backward(grad)
    expected, to_x, to_a = literal.pact(x, grad.double().numpy(), float(q.clip.detach()), bits, signed)
    close(y, expected)
    close(leaf.grad, to_x)
    close(q.clip.grad, to_a, atol=1e-3)


@pytest.mark.parametrize("clip_gradient", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_sawb(bits, clip_gradient):
    w, leaf, grad = tensors(scale=0.1)
    q = SAWB(bits, clip_gradient=clip_gradient)
    levels = 2**bits if bits <= 4 else 2**bits - 1
    y = q(leaf)
    y.backward(grad)
    expected, to_w = literal.sawb(w, grad.double().numpy(), *COEFFICIENTS[levels], levels, clip_gradient)
    close(y, expected)
    close(leaf.grad, to_w)


def test_sawb_falls_back_to_the_largest_magnitude():
    w = torch.full((64,), 0.5)
    w[::2] *= -1
    low, high = SAWB(8).bounds(w)  # 31.76 - 35.04 < 0
    assert (float(low), float(high)) == (-0.5, 0.5)


@pytest.mark.parametrize("kind", ["weight", "unsigned", "signed"])
@pytest.mark.parametrize("bits", BITS)
def test_lsq(bits, kind):
    if kind == "signed" and bits == 1:
        return
    q = ready(LSQ(bits, signed=kind != "unsigned", of_weight=kind == "weight"))
    qn, qp = q.codes()
    assert (qn, qp) == {
        "unsigned": (0, 2**bits - 1),
    }.get(kind, (0.5, 0.5) if bits == 1 else (2 ** (bits - 1), 2 ** (bits - 1) - 1))
    x, leaf, grad = tensors(1200)
    leaf = leaf.detach().reshape(6, 200).requires_grad_()
    with torch.no_grad():
        q.step.fill_(1.6 / max(1, qp))
    q(leaf).backward(grad.reshape(6, 200))
    expected, to_x, to_s = literal.lsq(
        x, grad.double().numpy(), float(q.step.detach()), qn, qp, 1200 if kind == "weight" else 200
    )
    close(q(leaf).flatten(), expected)
    close(leaf.grad.flatten(), to_x)
    close(q.step.grad, to_s, atol=1e-4)


class LiteralLSQ(torch.nn.Module):
    """Step-parametrised LSQ as in the paper, by detached rounding."""

    def __init__(self, step, qn, qp, elements):
        super().__init__()
        self.step, self.qn, self.qp, self.g = torch.nn.Parameter(step.clone()), qn, qp, (elements * qp) ** -0.5

    def forward(self, v):
        s = self.step * self.g + (self.step * (1 - self.g)).detach()
        clipped = torch.clamp(v / s, -self.qn, self.qp)
        return s * (clipped + (clipped.round() - clipped).detach())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_lsq_trains_like_its_literal_twin(optimizer):
    v = torch.randn(400)
    q = LSQ(2).like(of_weight=True)
    q.fit(3 * v, least_squares)  # a step too large, for training to mend
    start = float(q.step.detach())
    twin = LiteralLSQ(q.step.detach(), *q.codes(), 400)
    steps = []
    for module in (q, twin):
        sgd = optimizer is torch.optim.SGD
        options = {"lr": 1e-3, "momentum": 0.9} if sgd else {"lr": 1e-2, "weight_decay": 0.0}
        opt = optimizer(module.parameters(), **options)
        for _ in range(50):
            opt.zero_grad()
            (module(v) - v).square().sum().backward()
            opt.step()
        steps.append(float(module.step.detach()))
    assert steps[0] == pytest.approx(steps[1], rel=1e-4) and steps[0] < 0.9 * start


def test_lsq_paper_start():
    v = torch.randn(4000)
    q = LSQ(2, signed=True)
    q.fit(v, paper_start)
    assert float(q.step.detach()) == pytest.approx(2 * float(v.abs().mean()), rel=1e-5)  # Qp = 1
    with pytest.raises(TypeError, match="LSQ's own rule"):
        PACT(2, signed=False).fit(v, paper_start)


@pytest.mark.parametrize("bits", BITS)
def test_dorefa(bits):
    w, leaf, grad = tensors()
    close(DoReFa(bits, of_weight=True)(leaf), literal.dorefa_weight(w, bits))
    x, leaf, grad = tensors()
    y = ready(DoReFa(bits, signed=False))(leaf)
    y.backward(grad)
    expected, to_x = literal.dorefa_act(x, grad.double().numpy(), bits)
    close(y, expected)
    close(leaf.grad, to_x)


def test_dorefa_weight_gradient_is_that_of_the_squashed_weight():
    _, leaf, grad = tensors(300)
    DoReFa(2, of_weight=True)(leaf).backward(grad)
    twin = leaf.detach().double().requires_grad_()
    t = torch.tanh(twin)
    (t / t.abs().max()).backward(grad.double())  # straight through the rounding
    close(leaf.grad, twin.grad.numpy())


@pytest.mark.parametrize("shape", ["gauss", "laplace"])
@pytest.mark.parametrize("bits", BITS)
def test_least_squares_weights(bits, shape):
    w = torch.randn(3000) if shape == "gauss" else torch.distributions.Laplace(0.0, 1.0).sample((3000,))
    leaf = w.clone().requires_grad_()
    y = LeastSquares(bits)(leaf)
    grad = torch.randn_like(y)
    y.backward(grad)
    least = literal.least_squares_error(w.double().numpy(), bits)
    assert float((y.detach() - w).square().mean()) <= 1.005 * least
    assert torch.equal(leaf.grad, grad)


def test_minmax_and_percentile():
    w, leaf, _ = tensors()
    close(MinMax(4, of_weight=True)(leaf), literal.symmetric(w, np.abs(w).max(), 4))
    clip = np.sort(np.abs(w))[round(0.99 * len(w)) - 1]
    close(MinMax(4, percentile=99, of_weight=True)(leaf), literal.symmetric(w, clip, 4))
    stored = MinMax(8, percentile=99, signed=True)
    stored.fit(leaf, least_squares)  # its own rule wins
    assert float(stored.clip) == pytest.approx(clip)
    pact = PACT(8, signed=True)
    pact.fit(leaf, percentile(99))
    assert float(pact.clip.detach()) == pytest.approx(clip)
    with pytest.raises(ValueError, match="q is 0"):
        percentile(0)


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("kind", [SAWB, LSQ, DoReFa, LeastSquares, MinMax])
def test_per_channel_is_a_loop_over_channels(kind, shape):
    w = torch.randn(8, 4, 3, 3) * torch.rand(8, 4, 1, 1)
    whole = kind(3).like(of_weight=True, shape=shape)
    whole.fit(w, least_squares)
    axis = shape.index(max(shape))
    parts = []
    for part in w.split(1, dim=axis):
        q = kind(3).like(of_weight=True)
        q.fit(part, least_squares)
        parts.append(q(part))
    torch.testing.assert_close(whole(w), torch.cat(parts, dim=axis))


@pytest.mark.parametrize("kind", [PACT, LSQ])
def test_calibration_finds_the_least_error_and_gradient_reaches_the_range(kind):
    x = torch.randn(20_000).relu()
    q = kind(2, signed=False)
    q.fit(x, least_squares)
    error = float((q(x).detach() - x).square().mean())
    clips = torch.linspace(0.05, 4, 400)
    with torch.no_grad():
        brute = min(float((ready(kind(2, signed=False), c)(x) - x).square().mean()) for c in clips)
    assert error <= brute * 1.01
    (q(x.reshape(20, -1)) * torch.randn(20, 1000)).sum().backward()
    (stored,) = q.parameters()
    assert stored.grad.abs() > 0


@pytest.mark.parametrize("bits", [0, 9, 2.5, True, "2"])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f"bits is {bits!r}; expected"):
        PACT(bits)


def test_bits_none_is_float():
    x = torch.randn(10)
    assert PACT(None)(x) is x


def test_a_quantizer_without_range_says_so():
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
    with pytest.raises(ValueError, match="holds a quantizer of 2 bits, the model one of 4"):
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
    """A user's own: fixed bounds, outside the package."""

    stored = False

    def bounds(self, x):
        return torch.tensor(0.0), torch.tensor(3.0)


def test_a_users_own_quantizer():
    q = Thirds(2, signed=False)
    assert q(torch.tensor([-1.0, 0.4, 0.6, 2.2, 9.0])).tolist() == [0, 0, 1, 2, 3]
    with pytest.raises(TypeError, match="must define bounds"):
        ready(Quantizer(2, signed=False))(torch.ones(1))


def test_lsq_scales_the_gradient_of_each_channels_step_by_its_own_share():
    w = torch.randn(4, 3, 3, 3)
    whole = LSQ(2, of_weight=True, shape=(4, 1, 1, 1))
    whole.fit(w, least_squares)
    whole(w).square().sum().backward()
    for channel in range(4):
        q = LSQ(2, of_weight=True)
        q.fit(w[channel : channel + 1], least_squares)
        q(w[channel : channel + 1]).square().sum().backward()
        assert float(whole.step.grad[channel]) == pytest.approx(float(q.step.grad), rel=1e-5)


@pytest.mark.parametrize("kind", [PACT, LSQ])
def test_a_range_that_a_step_carried_below_zero_stays_a_range(kind):
    q = kind(2, signed=False)
    q.fit(torch.rand(100), least_squares)
    x = torch.rand(64, 4)
    expected = q(x)
    with torch.no_grad():
        next(q.parameters()).neg_()
    assert torch.equal(q(x), expected)


def test_a_move_inside_a_precision_context_leaves_the_home_grid(tmp_path):
    model = spequant.prepare(torch.nn.Sequential(torch.nn.Linear(4, 4)), weight=None, act=PACT(2), ends=2)
    spequant.calibrate(model, [torch.rand(64, 4)], samples=64)
    with spequant.precision(model, spequant.Fixed(8)):
        model._apply(torch.clone)  # what .to("cuda") does
    copy.deepcopy(model)
    assert int(model[0].act_quantizer.levels) == 4


def test_ties_go_to_the_even_multiple_of_a_step_as_in_onnx():
    """On signed grids, too, whose zero has an odd code; on a grid without zero to the even code."""
    low, high, levels = (torch.tensor(v) for v in (-127.0, 127.0, 255.0))
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 100.5])
    assert (quantize(x, low, high, levels) - 127).tolist() == [-2, -2, 0, 0, 2, 2, 100]
    low, high, levels = (torch.tensor(v) for v in (-3.0, 3.0, 4.0))
    assert quantize(torch.tensor([-2.0, 0.0, 2.0]), low, high, levels).tolist() == [0, 2, 2]


@pytest.mark.parametrize("signed", [False, True])
def test_lsq_rounds_ties_in_its_gradient_as_in_its_values(signed):
    q = ready(LSQ(3, signed=signed))
    with torch.no_grad():
        q.step.fill_(0.25)
    x = torch.arange(-12, 20).reshape(1, 32) * 0.125  # levels, ties between them, both ends and values beyond
    grad = torch.randn(1, 32)
    q(x).backward(grad)
    y, _, to_s = literal.lsq(x.double().numpy(), grad.double().numpy(), 0.25, *q.codes(), 32)
    close(q(x), y)
    close(q.step.grad, to_s)


@pytest.mark.parametrize("quantizer", [PACT(2), PACT(3, signed=True), LSQ(2), LSQ(3, signed=True)])
def test_gradients_of_both_ways_to_compare(quantizer):
    """bf16 values, compared by >=, and the very same ones in fp32, by sign; the ends and infinities among them."""
    quantizer.set_signed(bool(quantizer.signed))
    quantizer.fit(torch.tensor([1.5]), lambda quantizer, values: values.max())
    x = torch.cat([torch.randn(500), torch.tensor([0.0, -0.0, 1.5, -1.5, torch.inf, -torch.inf])]).bfloat16()
    found = []
    for values in (x, x.float()):
        values = values.clone().requires_grad_()
        (quantizer(values).float() * torch.arange(len(x)).bfloat16().float()).sum().backward()
        (parameter,) = quantizer.parameters()
        found.append((values.grad.float(), parameter.grad.clone()))
        parameter.grad = None
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert found[0][0].isfinite().all() and found[0][1].isfinite()


@pytest.mark.parametrize("low", [0.0, -1.2])
@pytest.mark.parametrize("inner", [False, True])
def test_ewgs(low, inner):
    x, leaf, grad = tensors()
    high, levels, scaling = torch.tensor(1.2), level_tensor(4 if low == 0 else 3), 0.3
    bottom = None if low == 0 else torch.tensor(low)
    y = fake_quantize(leaf, bottom, high, levels, inner=inner, ewgs=scaling)
    assert torch.equal(y, fake_quantize(leaf, bottom, high, levels))  # forward as ever
    y.backward(grad)
    expected = literal.ewgs(x, grad.double().numpy(), low, 1.2, int(levels), scaling)
    close(leaf.grad, expected)
    straight = grad.numpy() * (leaf.grad.numpy() != 0)
    assert np.abs(expected - straight).max() > 0.05  # and not straight-through


def test_set_ewgs_reaches_every_quantizer_and_refuses_what_has_none():
    batch = torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))
    model = spequant.prepare(resnet8(), weight=DoReFa(2), act=LSQ(2))
    spequant.calibrate(model, [batch], samples=8)

    def gradients():
        model.zero_grad()
        model(batch[0]).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    before = gradients()
    set_ewgs(model, 0.5)
    after = gradients()
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert {n for n in before if n.endswith("layer.weight")} - {"linear.layer.weight"} <= set(changed)
    set_ewgs(model, 0.0)
    assert all(torch.equal(before[n], g) for n, g in gradients().items())
    with pytest.raises(ValueError, match=r"scaling is -1"):
        set_ewgs(model, -1)
    with pytest.raises(ValueError, match="no quantizer"):
        set_ewgs(resnet8(), 0.1)
    with pytest.raises(ValueError, match="APoT has no uniform steps"):
        set_ewgs(spequant.prepare(resnet8(), weight=APoT(3), act=PACT(2)), 0.1)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_csq(bits):
    w, leaf, grad = tensors(1000)
    q = ready(CSQ(bits))
    with torch.no_grad():
        q.step.fill_(2.5 / 2**bits)
    y = q(leaf)
    y.backward(grad)
    expected, to_w, to_s = literal.csq(w, grad.double().numpy(), float(q.step.detach()), bits)
    close(y, expected)
    close(leaf.grad, to_w)
    close(q.step.grad, to_s, atol=1e-4)
    assert len(torch.unique(y.detach())) == 2**bits and (y != 0).all()


def test_csq_from_5_bits_on_has_zero_and_codes_of_int8():
    assert [CSQ(b).level_count() for b in (4, 5, 8)] == [16, 31, 255]
    with pytest.raises(ValueError, match="signed is False"):
        CSQ(2, signed=False)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_apot(bits):
    w, leaf, grad = tensors(1000, scale=0.1)
    q = ready(APoT(bits), 2.0)
    y = q(leaf)
    y.backward(grad)
    expected = literal.apot(w, 2.0, bits)
    close(y, expected)
    share = (w - w.mean()) / w.std() / 2.0
    inside = np.abs(share) < 1
    to_clip = (grad.double().numpy() * np.where(inside, expected / 2.0 - share, np.sign(share))).sum()
    close(q.clip.grad, to_clip, atol=1e-3)
    assert len(torch.unique(y.detach())) <= 2**bits - 1
    codes = q.encode(leaf.detach())
    assert torch.equal(dequantize(codes, *q.bounds(leaf), q.levels), y.detach().float())
    assert float(leaf.grad.sum().abs()) < 1e-3  # a constant added to all weights changes nothing


def test_apot_of_equal_weights_has_a_finite_slope():
    for w in (torch.zeros(3, 4), torch.full((3, 4), 0.5), torch.full((3, 4), 1e-23)):
        leaf = w.clone().requires_grad_()
        q = ready(APoT(4), 2.0)
        q(leaf).sum().backward()
        assert leaf.grad.isfinite().all() and q.clip.grad.isfinite().all()


@pytest.mark.parametrize("bits", [1, 7, 8])
def test_apot_refuses_other_bits(bits):
    with pytest.raises(ValueError, match=rf"bits is {bits}; expected 2 to 6"):
        APoT(bits)


@pytest.mark.parametrize("kind", [CSQ, APoT])
def test_weights_alone(kind):
    with pytest.raises(ValueError):
        spequant.prepare(resnet8(), weight=SAWB(2), act=kind(2))


@pytest.mark.parametrize("shape", [(8, 1, 1, 1)])
@pytest.mark.parametrize("kind", [CSQ, APoT])
def test_one_range_a_channel(kind, shape):
    w = torch.randn(8, 4, 3, 3) * torch.logspace(-2, 1, 8).view(shape)
    q = kind(3, shape=shape, of_weight=True)
    q.fit(w, least_squares)
    apart = torch.cat([_fitted(kind, w[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(q(w), apart, rtol=1e-5, atol=1e-6)


def _fitted(kind, w):
    q = kind(3, of_weight=True)
    q.fit(w, least_squares)
    return q(w)
