"""SAWB: values and gradients; the weights for which it takes exactly the published clip, and the others."""

import numpy as np
import pytest
import torch

from reference import quantizers as literal
from spequant.quantizers import SAWB, LeastSquares, MinMax
from spequant.quantizers.sawb import COEFFICIENTS, TOLERATED_LOSS
from support.quantizing import BITS, close, tensors
from support.weights import SPREAD


@pytest.mark.parametrize("clip_gradient", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_values_and_gradients(bits, clip_gradient):
    w, leaf, grad = tensors(scale=0.1)
    q = SAWB(bits, clip_gradient=clip_gradient)
    levels = 2**bits if bits <= 4 else 2**bits - 1
    y = q(leaf)
    y.backward(grad)
    clip = literal.sawb_clip(w, *COEFFICIENTS[levels], levels) if bits <= 4 else float(q.bounds(leaf)[1])
    expected, to_w = literal.sawb(w, grad.double().numpy(), clip, levels, clip_gradient)
    close(y, expected)
    close(leaf.grad, to_w)


@pytest.mark.parametrize("name", ["gauss", "laplace"])
@pytest.mark.parametrize("shape", [(1, 32), (1, 144), (1, 5120), (16, 64), (64, 576)])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_clip_of_bell_shaped_weights_is_the_published_one(bits, shape, name):
    """Bit for bit; with few values and 3 bits or more, unless it lies beyond the largest value, or far too low."""
    w = SPREAD[name](*shape) * 0.05
    c1, c2 = COEFFICIENTS[2**bits]
    published = c1 * w.square().mean(1, keepdim=True).sqrt() + c2 * w.abs().mean(1, keepdim=True)
    clip, top = SAWB(bits, shape=(shape[0], 1)).bounds(w)[1], w.abs().amax(1, keepdim=True)
    equal = clip == published
    assert equal.all() if shape[1] > 500 or bits < 3 else (clip[published >= top] == top[published >= top]).all()
    assert (equal | (published >= top)).float().mean() > 0.9


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("name", ["positive", "shifted", "two lumps", "sparse", "cauchy", "uniform"])
def test_the_clip_of_other_weights_follows_the_literal_rule(name, bits):
    for values in (40, 144, 5120):
        w = SPREAD[name](1, values)
        clip = literal.sawb_clip(w.double().numpy(), *COEFFICIENTS[2**bits], 2**bits)
        np.testing.assert_allclose(float(SAWB(bits).bounds(w)[1]), clip, rtol=1e-5)


@pytest.mark.parametrize("values", [4, 64])
@pytest.mark.parametrize("bits", BITS)
def test_weights_of_equal_magnitude_are_exact(bits, values):
    w = torch.full((values,), 0.5)
    w[::2] *= -1
    torch.testing.assert_close(SAWB(bits)(w), w)


@pytest.mark.parametrize(("bits", "values"), [(2, 9), (4, 31), (5, 9), (8, 20)])
def test_few_values_get_the_clip_of_least_squares(bits, values):
    w = torch.randn(3, values)
    expected = LeastSquares(bits, zero=False, shape=(3, 1))
    torch.testing.assert_close(SAWB(bits, shape=(3, 1))(w), expected(w), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
@pytest.mark.parametrize("values", [64, 500, 5000])
def test_from_5_bits_on_it_clips_only_where_that_clearly_lowers_the_error(bits, values):
    w = torch.randn(1, values)
    w[0, 0] *= 30  # an outlier, which makes the grid up to max|w| coarse
    least, largest, sawb = (q(w) for q in (LeastSquares(bits, shape=(1, 1)), MinMax(bits, of_weight=True), SAWB(bits)))
    error, error_of_largest = ((w - rounded).norm() for rounded in (least, largest))
    assert torch.equal(sawb, largest if error_of_largest <= TOLERATED_LOSS * error else least)
    w[0, 0] = 0
    assert SAWB(bits)(w).abs().max() == w.abs().max() or bits == 5


def test_an_unsigned_grid_is_refused():
    with pytest.raises(ValueError, match="signed is False"):
        SAWB(2, signed=False)
