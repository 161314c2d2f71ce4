"""Calibration rules: the clip that each chooses, against a search."""

import numpy as np
import pytest
import torch

from spequant.quantizers import LSQ, PACT, LSQPlus, MinMax, least_squares, percentile
from spequant.quantizers.ranges import SWEEP_VALUES, best_zero, largest
from support.quantizing import fitted, ready, tensors


def test_percentile():
    x, leaf, _ = tensors()
    clip = np.sort(np.abs(x))[round(0.99 * len(x)) - 1]
    pact = fitted(PACT(8, signed=True), leaf, percentile(99))
    assert float(pact.clip.detach()) == pytest.approx(clip)
    assert percentile(100) is largest
    with pytest.raises(ValueError, match="q is 0"):
        percentile(0)


@pytest.mark.parametrize("kind", [PACT, LSQ])
def test_calibration_finds_the_least_error_and_gradient_reaches_the_range(kind):
    x = torch.randn(20_000).relu()
    q = fitted(kind(2, signed=False), x, least_squares)
    error = float((q(x).detach() - x).square().mean())
    clips = torch.linspace(0.05, 4, 400)
    with torch.no_grad():
        brute = min(float((ready(kind(2, signed=False), c)(x) - x).square().mean()) for c in clips)
    assert error <= brute * 1.01
    (q(x.reshape(20, -1)) * torch.randn(20, 1000)).sum().backward()
    (clip,) = q.parameters()
    assert clip.grad.abs() > 0


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("shape", [(), (4, 1)])
@pytest.mark.parametrize("kind", [PACT, LSQ, LSQPlus])
def test_least_squares_equals_trying_its_fractions_one_by_one(kind, shape, many):
    """Both when a sweep holds all fractions at once and when it holds only some of them."""
    q = kind(3, signed=True, shape=shape)
    x = torch.randn(4, SWEEP_VALUES // 3 if many else 50) * torch.tensor([[1.0], [0.1], [4.0], [2.0]])
    q.fit(x, largest)
    top = q.reduce(x.abs(), torch.amax)

    def best(fractions):
        errors = []
        for fraction in fractions:
            with torch.no_grad():
                q.set_clip(top * fraction)
                errors.append(q.reduce((q(x) - x).square(), torch.mean))
        return torch.stack(fractions).gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]

    coarse = best([torch.ones_like(top) * i / 100 for i in range(1, 101)])
    fine = best([(coarse + i / 1000).clamp(0.001, 1.0) for i in range(-9, 10)])
    torch.testing.assert_close(least_squares(q, x), top * fine)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", [PACT, LSQ, LSQPlus, MinMax])
@torch.no_grad()
def test_of_powers_of_two_the_largest_value_is_not_clipped_and_least_squares_takes_the_best(kind, signed):
    x = torch.randn(3000) if signed else torch.randn(3000).relu()
    top = float(x.abs().max())
    q = fitted(kind(3, signed=signed, power_of_two=True), x, largest)
    ends = [float(end.abs()) for end in q.grid_bounds(x)]
    assert top <= max(ends) < 2 * top
    if kind is not MinMax:  # its rule is always its own
        q.fit(x, least_squares)
        clip, least = max(float(end.abs()) for end in q.grid_bounds(x)), float((q(x) - x).square().mean())
        for factor in (0.25, 0.5, 2, 4):
            q.set_clip(torch.tensor(clip * factor))
            assert least <= float((q(x) - x).square().mean())


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_the_zero_point_follows_the_values(levels):
    x = torch.rand(500)
    assert best_zero(x, levels) == 0 and best_zero(-x, levels) == levels - 1
    assert best_zero(torch.zeros(9), levels) == (levels - 1) // 2
