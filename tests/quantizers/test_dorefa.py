"""DoReFa: values and gradients of weights and activations."""

import pytest
import torch

from reference import quantizers as literal
from spequant.quantizers import DoReFa
from support.quantizing import BITS, close, ready, tensors


@pytest.mark.parametrize("bits", BITS)
def test_values_and_gradients(bits):
    w, leaf, grad = tensors()
    close(DoReFa(bits, of_weight=True)(leaf), literal.dorefa_weight(w, bits))
    x, leaf, grad = tensors()
    y = ready(DoReFa(bits, signed=False))(leaf)
    y.backward(grad)
    expected, to_x = literal.dorefa_act(x, grad.double().numpy(), bits)
    close(y, expected)
    close(leaf.grad, to_x)


def test_the_weights_gradient_is_that_of_the_squashed_weight():
    _, leaf, grad = tensors(300)
    DoReFa(2, of_weight=True)(leaf).backward(grad)
    twin = leaf.detach().double().requires_grad_()
    t = torch.tanh(twin)
    (t / t.abs().max()).backward(grad.double())  # straight through the rounding
    close(leaf.grad, twin.grad.numpy())
