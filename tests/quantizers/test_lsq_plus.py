"""LSQ+: values and gradients, its start, and training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from reference import quantizers as literal
from spequant.quantizers import LSQ, PACT, LSQPlus, least_squares, percentile
from support.quantizing import BITS, error, fitted


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("share", [-0.2, 0.0, 0.12, 0.45, 0.83, 1.0, 1.3])
@pytest.mark.parametrize("bits", BITS)
def test_values_and_gradients(bits, share, power_of_two):
    q = LSQPlus(bits, signed=True, power_of_two=power_of_two)
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
    twin = literal.power_of_two_lsq_plus if power_of_two else literal.lsq_plus
    expected, *gradients = twin(x, grad.double().numpy(), step, beta, p, 200)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    for parameter, gradient in zip((leaf, q.step, q.offset), gradients, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_unsigned_it_is_lsq(bits):
    x, results = torch.randn(6, 200).relu() * 1.4, []
    for q in (LSQ(bits, signed=False), LSQPlus(bits, signed=False)):
        q.fit(x, least_squares)
        y = q(x)
        y.square().sum().backward()
        results.append((y.detach(), q.step.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not q.offset.requires_grad
    q.set_signed(True)
    assert q.offset.requires_grad


@pytest.mark.parametrize("activation", [F.gelu, F.silu])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_its_start_has_less_error_than_symmetric_lsq(activation, bits):
    x = activation(torch.randn(20_000))
    plain = error(fitted(LSQ(bits, signed=True), x, least_squares), x)
    assert error(fitted(LSQPlus(bits, signed=True), x, least_squares), x) < 0.5 * plain


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_its_start_is_the_best_of_all_grids(bits):
    x, p = F.silu(torch.randn(4000) * 1.5 - 0.5), 2**bits - 1
    least = 1.0
    for zero in range(p + 1):
        for step in torch.linspace(0.01, 1.5 * float(x.max()) / p, 300):
            y = step * torch.round(x / step).clamp(-zero, p - zero)
            least = min(least, float((y - x).square().mean() / x.square().mean()))
    assert error(fitted(LSQPlus(bits, signed=True), x, least_squares), x) <= 1.01 * least


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
def test_degenerate_values_also_give_a_range(x, ends, bits):
    q = LSQPlus(bits, signed=True)
    q.fit(x, least_squares)
    low, high = (float(bound.detach()) for bound in q.bounds(x))
    assert low <= 0 <= high and high - low > 0 and q(torch.randn(9)).isfinite().all()
    assert ends is None or (low, high) == pytest.approx(ends)


def test_one_range_per_row_equals_fitting_each_row():
    x = F.silu(torch.randn(3, 400)) * torch.tensor([[1.0], [0.1], [4.0]])
    per_row = LSQPlus(3, signed=True, shape=(3, 1))
    per_row.fit(x, least_squares)
    for row, y in zip(x, per_row(x), strict=True):
        q = LSQPlus(3, signed=True)
        q.fit(row, least_squares)
        torch.testing.assert_close(q(row), y)


def test_training_fits_step_and_offset_to_the_values():
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


def test_a_weight_is_refused():
    with pytest.raises(ValueError, match=r"LSQPlus .* weight \(of_weight is True\).* use LSQ"):
        spequant.prepare(nn.Sequential(nn.Linear(4, 4)), weight=LSQPlus(2), act=PACT(2))
