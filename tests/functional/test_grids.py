"""Functions of tensors: codes, their values, and gradients."""

import numpy as np
import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from spequant.functional import (
    LEAST_END,
    dequantize,
    fake_quantize,
    nearest_power,
    on_power_of_two,
    positive,
    power_above,
    quantize,
    scale_gradient,
    without_autocast,
    zero_point,
)
from spequant.quantizers import LSQ, PACT
from spequant.quantizers.base import level_tensor


def numbers(*values):
    return (torch.tensor(float(v)) for v in values)


def test_ties_go_to_the_even_multiple_of_a_step_as_in_onnx():
    """Also on signed grids, whose zero has an odd code; on a grid without zero, ties go to the even code."""
    low, high, levels = numbers(-127, 127, 255)
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 100.5])
    assert (quantize(x, low, high, levels) - 127).tolist() == [-2, -2, 0, 0, 2, 2, 100]
    low, high, levels = numbers(-3, 3, 4)
    assert quantize(torch.tensor([-2.0, 0.0, 2.0]), low, high, levels).tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    ("low", "high", "levels", "zero"), [(None, 3, 4, 0), (-1, 3, 5, 1), (-1, 1, 3, 1), (-1, 1, 4, 1.5), (-1.1, 3, 5, 1)]
)
def test_the_code_of_zero(low, high, levels, zero):
    """A whole number, except with an even number of levels around zero."""
    bottom = None if low is None else torch.tensor(float(low))
    high, levels = numbers(high, levels)
    code = zero_point(bottom, high, levels)
    assert float(code) == zero
    assert float(dequantize(code, bottom, high, levels)) == 0


@pytest.mark.parametrize("low", [None, -1.0, -0.4])
def test_values_of_codes_have_these_codes(low):
    bottom = None if low is None else torch.tensor(low)
    high, levels = numbers(1.3, 16)
    codes = torch.arange(16.0)
    values = dequantize(codes, bottom, high, levels)
    assert torch.equal(quantize(values, bottom, high, levels), codes)
    assert torch.equal(fake_quantize(values, bottom, high, levels), values)
    assert quantize(torch.tensor([-9.0, 9.0]), bottom, high, levels).tolist() == [0, 15]


def test_beyond_the_ends_a_gradient_passes_only_without_saturation():
    x, (high, levels) = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]), numbers(1, 4)
    for saturate, gradient in ((True, [0, 1, 1, 1, 0]), (False, [1] * 5)):
        leaf = x.clone().requires_grad_()
        fake_quantize(leaf, None, high, levels, saturate=saturate).sum().backward()
        assert leaf.grad.tolist() == gradient


@pytest.mark.parametrize(
    "make", [lambda: PACT(2), lambda: PACT(3, signed=True), lambda: LSQ(2), lambda: LSQ(3, signed=True)]
)
def test_gradients_are_equal_by_comparison_and_by_sign(make):
    """bf16 values are compared by >=, the same values in fp32 by sign; the ends and infinities are among them."""
    quantizer = make()
    quantizer.set_signed(bool(quantizer.signed))
    quantizer.fit(torch.tensor([1.5]), lambda quantizer, values: values.max())
    x = torch.cat([torch.randn(500), torch.tensor([0.0, -0.0, 1.5, -1.5, torch.inf, -torch.inf])]).bfloat16()
    results = []
    for values in (x, x.float()):
        values = values.clone().requires_grad_()
        (quantizer(values).float() * torch.arange(len(x)).bfloat16().float()).sum().backward()
        (parameter,) = quantizer.parameters()
        results.append((values.grad.float(), parameter.grad.clone()))
        parameter.grad = None
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    assert results[0][0].isfinite().all() and results[0][1].isfinite()


def test_scaling_a_gradient_does_not_change_the_value():
    x = torch.tensor([2.0, -3.0], requires_grad=True)
    y = scale_gradient(x, 0.25)
    y.square().sum().backward()
    assert torch.equal(y, x) and x.grad.tolist() == [1.0, -1.5]


def test_a_range_below_zero_counts_as_positive_and_is_pushed_back():
    x = torch.tensor([2.0, -3.0, 0.0], requires_grad=True)
    y = positive(x)
    y.sum().backward()
    assert torch.equal(y, torch.tensor([2.0, 3.0, LEAST_END])) and x.grad[:2].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("levels", [2, 3, 4, 15, 255])
@pytest.mark.parametrize("low", [None, -1.0, -0.37])
def test_values_are_the_nearest_levels_of_a_uniform_grid(low, levels):
    x, high = torch.randn(500), torch.tensor(1.0)
    bottom = None if low is None else torch.tensor(low)
    y = fake_quantize(x, bottom, high, level_tensor(levels)).double().numpy()
    start, step = low or 0.0, (1.0 - (low or 0.0)) / (levels - 1)
    zero = 0.0 if low is None else -start / step
    shift = 0.0 if low == -1.0 else (round(zero) - zero) * step  # puts zero on the grid; not for symmetric ranges
    grid = start - shift + step * np.arange(levels)
    nearest = np.abs(np.clip(x.double().numpy(), grid[0], grid[-1])[:, None] - grid).min(1)
    np.testing.assert_allclose(np.abs(np.clip(x.double().numpy(), grid[0], grid[-1]) - y), nearest, atol=1e-6)
    codes = quantize(x, bottom, high, level_tensor(levels))
    assert codes.min() >= 0 and codes.max() <= levels - 1 and torch.equal(codes, codes.round())
    np.testing.assert_allclose(dequantize(codes, bottom, high, level_tensor(levels)).numpy(), y, atol=1e-6)


@without_autocast
def product_dtype(x, *, fail=False):
    """The dtype of a product of `x` with itself."""
    if fail:
        raise RuntimeError("failed")
    return (x @ x).dtype


def test_the_shapes_in_its_signature_are_those_it_takes():
    checked = jaxtyped(typechecker=beartype)(fake_quantize)
    x, levels = torch.randn(4, 3, 2, 2), torch.tensor(4.0)
    for shape in ((), (3, 1, 1)):
        low, high = -torch.ones(shape), torch.ones(shape)
        assert checked(x, low, high, levels).shape == checked(x, None, high, levels).shape == x.shape
    with pytest.raises(TypeCheckError, match="typechecking parameter 'high'"):
        checked(x, -torch.ones(()), torch.ones(3, 1, 1), levels)


def test_autocast_is_off_inside_and_on_again_after():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert product_dtype(x) == torch.float32
        with pytest.raises(RuntimeError, match="failed"):
            product_dtype(x, fail=True)
        assert (x @ x).dtype == torch.bfloat16
    assert product_dtype(x) == torch.float32


def test_the_nearest_power_of_two_and_the_next_one_above():
    exponents = torch.arange(-120, 120)
    powers = torch.ldexp(torch.ones(240), exponents)
    assert torch.equal(nearest_power(powers), powers) and torch.equal(power_above(powers), powers)
    x = torch.rand(240) * powers
    assert torch.equal(nearest_power(x), x.double().log2().round().exp2().float())
    assert torch.equal(power_above(x), x.double().log2().ceil().exp2().float())
    assert nearest_power(torch.zeros(2)).eq(0).all() and power_above(torch.zeros(2)).eq(0).all()
    assert power_above(torch.tensor([1 + 2**-23, 1.001])).tolist() == [1, 2]


def test_bounds_that_are_zero_stay_zero_on_powers_of_two():
    low, high = torch.tensor([-3.0, 0.0], requires_grad=True), torch.tensor([3.0, 0.0], requires_grad=True)
    bounds = on_power_of_two(low, high, *numbers(4, 4))
    assert [bound.tolist() for bound in bounds] == [[-3.0, 0.0], [3.0, 0.0]]
    sum(bounds).sum().backward()
    assert low.grad.isfinite().all() and high.grad.isfinite().all()
