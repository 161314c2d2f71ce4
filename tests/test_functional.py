"""Arithmetic of quantization: values, ties and gradients of `fake_quantize` against its literal twins."""

import numpy as np
import pytest
import torch

from reference import quantizers as literal
from spequant.functional import dequantize, fake_quantize, quantize, scale_gradient
from spequant.quantizers import PACT
from spequant.quantizers.base import level_tensor
from support.quantizers import close, ready, tensors


def test_low_precision_input_is_quantized_in_fp32():
    x = torch.randn(4000).bfloat16()
    q = ready(PACT(8, signed=True), 2.7)
    y = q(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, q(x.float()).bfloat16())


def test_ties_go_to_the_even_multiple_of_a_step_as_in_onnx():
    """On signed grids, too, whose zero has an odd code; on a grid without zero to the even code."""
    low, high, levels = (torch.tensor(v) for v in (-127.0, 127.0, 255.0))
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 100.5])
    assert (quantize(x, low, high, levels) - 127).tolist() == [-2, -2, 0, 0, 2, 2, 100]
    low, high, levels = (torch.tensor(v) for v in (-3.0, 3.0, 4.0))
    assert quantize(torch.tensor([-2.0, 0.0, 2.0]), low, high, levels).tolist() == [0, 2, 2]


@pytest.mark.parametrize("low", [0.0, -1.2])
@pytest.mark.parametrize("inner", [False, True])
def test_ewgs(low, inner):
    x, leaf, grad = tensors()
    high, levels, scaling = torch.tensor(1.2), level_tensor(4 if low == 0 else 3), 0.3
    bottom = None if low == 0 else torch.tensor(low)
    y = fake_quantize(leaf, bottom, high, levels, inner=inner, ewgs=scaling)
    assert torch.equal(y, fake_quantize(leaf, bottom, high, levels))  # forward as ever
    y.backward(grad)
    expected = literal.ewgs(x, grad.double().numpy(), low, 1.2, int(levels), scaling)
    close(leaf.grad, expected)
    straight = grad.numpy() * (leaf.grad.numpy() != 0)
    assert np.abs(expected - straight).max() > 0.05  # and not straight-through


@pytest.mark.parametrize("levels", [2, 3, 4, 15, 255])
@pytest.mark.parametrize("low", [None, -1.0, -0.37])
def test_values_are_the_nearest_of_equally_spaced_ones(low, levels):
    x, high = torch.randn(500), torch.tensor(1.0)
    bottom = None if low is None else torch.tensor(low)
    y = fake_quantize(x, bottom, high, level_tensor(levels)).double().numpy()
    start, step = low or 0.0, (1.0 - (low or 0.0)) / (levels - 1)
    zero = 0.0 if low is None else -start / step
    shift = 0.0 if low == -1.0 else (round(zero) - zero) * step  # zero on the grid, unless the range is symmetric
    grid = start - shift + step * np.arange(levels)
    nearest = np.abs(np.clip(x.double().numpy(), grid[0], grid[-1])[:, None] - grid).min(1)
    np.testing.assert_allclose(np.abs(np.clip(x.double().numpy(), grid[0], grid[-1]) - y), nearest, atol=1e-6)
    codes = quantize(x, bottom, high, level_tensor(levels))
    assert codes.min() >= 0 and codes.max() <= levels - 1 and torch.equal(codes, codes.round())
    np.testing.assert_allclose(dequantize(codes, bottom, high, level_tensor(levels)).numpy(), y, atol=1e-6)


def test_a_scaled_gradient_leaves_the_value():
    x = torch.randn(5, requires_grad=True)
    y = scale_gradient(x, 0.25)
    assert torch.equal(x, y)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((5,), 0.25))
