"""SAWB: values and gradients; where its coefficients give no clip."""

import pytest
import torch

from reference import quantizers as literal
from spequant.quantizers import SAWB
from spequant.quantizers.sawb import COEFFICIENTS
from support.quantizing import BITS, close, tensors


@pytest.mark.parametrize("clip_gradient", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_values_and_gradients(bits, clip_gradient):
    w, leaf, grad = tensors(scale=0.1)
    q = SAWB(bits, clip_gradient=clip_gradient)
    levels = 2**bits if bits <= 4 else 2**bits - 1
    y = q(leaf)
    y.backward(grad)
    expected, to_w = literal.sawb(w, grad.double().numpy(), *COEFFICIENTS[levels], levels, clip_gradient)
    close(y, expected)
    close(leaf.grad, to_w)


def test_it_falls_back_to_the_largest_magnitude():
    w = torch.full((64,), 0.5)
    w[::2] *= -1
    low, high = SAWB(8).bounds(w)  # 31.76 - 35.04 < 0
    assert (float(low), float(high)) == (-0.5, 0.5)


def test_its_grid_is_symmetric():
    with pytest.raises(ValueError, match="signed is False"):
        SAWB(2, signed=False)
