"""LeastSquares: how near it comes to the least error, on many weights and on the nine of a depthwise channel."""

import numpy as np
import pytest
import torch

from reference import quantizers as literal
from spequant.quantizers import LSQ, SAWB, LeastSquares, least_squares
from support.quantizing import BITS


@pytest.mark.parametrize("shape", ["gauss", "laplace"])
@pytest.mark.parametrize("bits", BITS)
def test_the_error_is_the_least_and_the_gradient_straight_through(bits, shape):
    w = torch.randn(3000) if shape == "gauss" else torch.distributions.Laplace(0.0, 1.0).sample((3000,))
    leaf = w.clone().requires_grad_()
    y = LeastSquares(bits)(leaf)
    grad = torch.randn_like(y)
    y.backward(grad)
    least = literal.least_squares_error(w.double().numpy(), bits)
    assert float((y.detach() - w).square().mean()) <= 1.005 * least
    assert torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_of_powers_of_two_it_takes_the_best(bits, zero):
    w = torch.randn(4, 500) * torch.tensor([[1.0], [0.01], [0.6], [8.0]])
    w[3, 0] = 100.0
    q = LeastSquares(bits, zero=zero, shape=(4, 1), power_of_two=True)
    half = (q.level_count() - 1) / 2
    tried = [literal.on_uniform(w.double().numpy(), 2.0**e, half) for e in range(-16, 10)]
    errors = np.stack([((y - w.double().numpy()) ** 2).mean(1) for y in tried])
    np.testing.assert_allclose((q(w) - w).square().mean(1).numpy(), errors.min(0), rtol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_nine_samples_per_channel_are_fitted_as_by_sawb_and_better_than_by_one_range(bits):
    w = torch.randn(300, 1, 3, 3) * torch.rand(300, 1, 1, 1)
    shape = (300, 1, 1, 1)
    search, lsq = LeastSquares(bits, zero=False, shape=shape, of_weight=True), LSQ(bits, shape=shape, of_weight=True)
    assert search.level_count() == SAWB(bits).level_count()
    lsq.fit(w, least_squares)
    with torch.no_grad():
        search_error, lsq_error, per_tensor_error, sawb_error = (
            float((q(w) - w).square().mean()) for q in (search, lsq, SAWB(bits), SAWB(bits, shape=shape))
        )
    assert search_error == sawb_error and max(search_error, lsq_error) < 0.9 * per_tensor_error


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_on_nine_samples_it_is_near_the_best_of_many_steps(bits, zero):
    q = LeastSquares(bits, zero=zero, shape=(16, 1, 1, 1), of_weight=True)
    w = torch.distributions.Laplace(0.0, 1.0).sample((16, 1, 3, 3))
    error = (q(w) - w).square().flatten(1).mean(1).double().numpy()
    least = [literal.least_squares_error(row.double().numpy(), bits, zero) for row in w.flatten(1)]
    assert np.mean(error) <= 1.05 * np.mean(least)
    parts = [LeastSquares(bits, zero=zero, of_weight=True)(row) for row in w]
    torch.testing.assert_close(q(w), torch.stack(parts))
