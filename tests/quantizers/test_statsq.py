"""StatsQ: values and gradients, its clip per row, and what it is at other bits."""

import numpy as np
import pytest
import torch

from reference import quantizers as literal
from spequant.quantizers import LSQ, StatsQ
from support.quantizing import close, tensors


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_values_and_gradients(bits):
    w, leaf, grad = tensors(scale=0.1)
    y = StatsQ(bits)(leaf)
    y.backward(grad)
    expected, to_w = literal.statsq(w, grad.double().numpy(), bits)
    close(y, expected)
    close(leaf.grad, to_w)
    assert len(y.detach().unique()) == 2**bits


def test_each_row_has_its_own_clip():
    w = torch.randn(3, 200) * torch.tensor([[0.1], [1.0], [5.0]])
    y = StatsQ(2, shape=(3, 1))(w)
    for row, of_row in zip(y, w, strict=True):
        close(row, literal.statsq(of_row.double().numpy(), 0, 2)[0])
    low, high = StatsQ(2, shape=(3, 1)).bounds(w)
    np.testing.assert_allclose(high.numpy(), 1.5 * w.abs().mean(1, keepdim=True).numpy(), rtol=1e-6)
    assert torch.equal(low, -high)


def test_zeros_stay_zeros():
    w = torch.randn(2, 40)
    w[0] = 0
    y = StatsQ(2, shape=(2, 1))(w)
    assert not y[0].any() and y[1].all()


def test_other_bits_and_signs_are_refused_or_another_quantizer():
    assert isinstance(StatsQ(2).at(8), LSQ) and isinstance(StatsQ(2).at(4), StatsQ)
    with pytest.raises(ValueError, match="bits is 5"):
        StatsQ(5)
    with pytest.raises(ValueError, match="signed is False"):
        StatsQ(2, signed=False)
