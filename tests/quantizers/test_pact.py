"""PACT: values and gradients, unsigned and signed; the penalty on the clip."""

import pytest

from reference import quantizers as literal
from spequant.quantizers import PACT
from support.quantizing import BITS, close, ready, tensors


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_values_and_gradients(bits, signed, power_of_two):
    if signed and bits == 1:
        with pytest.raises(ValueError, match="PACT at 1 bit"):
            PACT(1, signed=True)
        return
    x, leaf, grad = tensors()
    q = ready(PACT(bits, signed=signed, power_of_two=power_of_two), 1.3)
    y = q(leaf)
    y.backward(grad)
    twin = literal.power_of_two_pact if power_of_two else literal.pact
    expected, to_x, to_a = twin(x, grad.double().numpy(), float(q.clip.detach()), bits, signed)
    close(y, expected)
    close(leaf.grad, to_x)
    close(q.clip.grad, to_a, atol=1e-3)


def test_the_penalty_is_on_the_clip_and_zero_decay_leaves_it_out():
    q = ready(PACT(2, decay=0.5), 3.0)
    clip, factor = q.decayed()
    assert clip is q.clip and factor == 0.5 and PACT(2, decay=0).decayed() is None
    assert q.like(bits=3).decay == 0.5
    with pytest.raises(ValueError, match="decay is -1"):
        PACT(2, decay=-1)
