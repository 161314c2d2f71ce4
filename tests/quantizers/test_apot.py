"""APoT: values, gradients and codes; equal weights; bits that it does not have."""

import numpy as np
import pytest
import torch

from reference import quantizers as literal
from spequant.functional import dequantize
from spequant.quantizers import LSQ, APoT
from support.quantizing import close, ready, tensors


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_values_gradients_and_codes(bits):
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
    assert float(leaf.grad.sum().abs()) < 1e-3  # adding a constant to all weights changes nothing


def test_equal_weights_have_a_finite_slope():
    for w in (torch.zeros(3, 4), torch.full((3, 4), 0.5), torch.full((3, 4), 1e-23)):
        leaf = w.clone().requires_grad_()
        q = ready(APoT(4), 2.0)
        q(leaf).sum().backward()
        assert leaf.grad.isfinite().all() and q.clip.grad.isfinite().all()


@pytest.mark.parametrize("bits", [1, 7, 8])
def test_other_bits_are_refused_and_taken_by_lsq(bits):
    with pytest.raises(ValueError, match=rf"bits is {bits}; expected 2 to 6"):
        APoT(bits)
    assert type(APoT(3).at(bits)) is LSQ and type(APoT(3).at(4)) is APoT
