"""CSQ: values and gradients, and the bits at which zero is not a level."""

import pytest
import torch

from reference import quantizers as literal
from spequant.quantizers import CSQ
from support.quantizing import close, ready, tensors


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_values_and_gradients(bits):
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


def test_from_5_bits_on_zero_is_a_level_and_codes_fit_int8():
    assert [CSQ(b).level_count() for b in (4, 5, 8)] == [16, 31, 255]
    with pytest.raises(ValueError, match="signed is False"):
        CSQ(2, signed=False)
