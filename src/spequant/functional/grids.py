"""Functions of tensors: rounding to a grid, fake quantization, and their gradients; fp32 under autocast.

Custom autograd functions live only in this file; modules, state and policy live elsewhere.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from spequant.functional.graphs import Given, Returned, one_node

LEAST_END = 1e-30
"""The smallest end of a stored range, so that no range collapses to zero width."""
LEAST_WIDTH = 1e-36
"""The smallest width to divide by: the range from 0 to 0 of an all-zero weight then gives zeros instead of NaN."""
EXPONENT = 0x7F800000
"""The bits of an fp32 number that hold its exponent."""


def zero_point(low: Tensor | None, high: Tensor, levels: Tensor) -> Tensor:
    """Return the code of the value zero on the grid of `levels` levels over [low, high].

    The code is a whole number, so that zero is on the grid. The exception is a symmetric range with an even number of
    levels (SAWB at 2 bits: -a, -a/3, a/3, a): there zero lies half-way between two codes.

    Args:
        low: lower end of the range, fp32; None means [0, high].
        high: upper end, fp32, broadcastable with `low`.
        levels: number of levels, 0-dim fp32.

    Returns:
        fp32, of the shape of `high`.
    """
    if low is None:
        return torch.zeros_like(high)
    steps = levels - 1
    return torch.where(low == -high, steps * 0.5, torch.round(-low * steps / (high - low)))


def _scaled(x: Tensor, low: Tensor | None, high: Tensor, levels: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return `x` in steps of the grid, and the whole number to add after rounding, which gives the code."""
    steps = levels - 1
    if low is None:
        return x.float() * (steps / high), 0.0
    zero = zero_point(low, high, levels)
    half = torch.where(zero == zero.round(), 0.0, zero)  # a whole zero point is added after rounding, which is exact
    rate = steps / (high - low).clamp_min(LEAST_WIDTH)
    return x.float() * rate + half, zero - half


def quantize(x: Tensor, low: Tensor | None, high: Tensor, levels: Tensor) -> Tensor:
    """Return the codes of `x` on the grid of `levels` levels over [low, high].

    Ties go to the even multiple of the step, as in ONNX's QuantizeLinear; on a grid without zero, to the even code.

    Args:
        x: values of any floating-point dtype.
        low: lower end of the range, fp32, broadcast against `x`; None means [0, high].
        high: upper end, fp32, broadcast against `x`.
        levels: number of levels, 0-dim fp32.

    Returns:
        Whole numbers from 0 to levels - 1 as fp32, of the shape of `x`.
    """
    scaled, zero = _scaled(x, low, high, levels)  # a new tensor: changing it in place halves the time
    return scaled.round_().add_(zero).clamp_min_(0.0).clamp_max_(levels - 1)


def dequantize(codes: Tensor, low: Tensor | None, high: Tensor, levels: Tensor) -> Tensor:
    """Return the values of `codes`, fp32, on the grid of `levels` levels over [low, high]; low None means [0, high].

    Each value is a quotient of whole numbers times the width of the range. A finer grid over the same range that has
    the value among its levels therefore gives exactly the same float.
    """
    if low is None:
        return (codes / (levels - 1)).mul_(high)
    return (codes - zero_point(low, high, levels)).div_(levels - 1).mul_(high - low)


def nearest_power(x: Tensor) -> Tensor:
    """Return the power of two whose exponent is nearest to that of `x`: 2^round(log2 x).

    The bits of the number give the exponent, so that the result is exactly a power of two on every device.

    Args:
        x: fp32, from 2^-125 to 2^126, or 0, which stays 0.

    Returns:
        fp32, of the shape of `x`.
    """
    return ((x * 2**0.5).view(torch.int32) & EXPONENT).view(torch.float32)


def power_above(x: Tensor) -> Tensor:
    """Return the smallest power of two of at least `x`, which may exceed it by a rounding error, a share of 1e-6.

    Args:
        x: fp32, from 2^-125 to 2^126, or 0, which stays 0.
    """
    return ((x * (2 - 2e-6)).view(torch.int32) & EXPONENT).view(torch.float32)


class _OnPowerOfTwo(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(low, high, home, levels):
        step = nearest_power((high - low) / (home - 1)) * nearest_power((home - 1) / (levels - 1))
        zero = zero_point(low, high, levels)
        return (0 - zero) * step, (levels - 1 - zero) * step

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2], *output)

    @staticmethod
    def backward(ctx, grad_low, grad_high):
        low, high, rounded_low, rounded_high = ctx.saved_tensors
        width = high - low
        ratio = torch.where(width > 0, (rounded_high - rounded_low) / width.clamp_min(LEAST_WIDTH), 1.0)
        return grad_low * ratio, grad_high * ratio, None, None


@one_node(
    "(Tensor low, Tensor high, Tensor home, Tensor levels) -> (Tensor, Tensor)",
    like=lambda low, high, *_: (low + high, high + low),
)
def on_power_of_two(low: Tensor, high: Tensor, home: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds with the same zero point whose step is the power of two nearest to that of [low, high].

        s = (high - low) / (home - 1);  S = 2^round(log2 s);  at other levels S 2^round(log2((home - 1) / (levels - 1)))
        low' = -z S,  high' = (levels - 1 - z) S,  z the zero point

    The gradient passes straight through the rounding of the exponent: d log2 S = d log2 s, so that dS/ds = S / s, and
    the bounds' gradients are those of low' and high' times S / s.

    Args:
        low, high: ends of the range at the home grid, fp32; both may be zero, and stay so.
        home: number of levels of the home grid, 0-dim fp32.
        levels: number of levels of the grid in use, 0-dim fp32.

    Returns:
        (low', high'), of the shape of `high`.

    References:
        The straight-through gradient in the exponent: Jain et al., MLSys 2020, arXiv 1903.08066, who round it up.
    """
    return _OnPowerOfTwo.apply(low, high, home, levels)


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization that saves only `x` for the backward pass and computes everything else again from it.

    When compiled, often not even `x` is saved: batch norm saves its input anyway, and the kernels of the backward pass
    compute `x` from that.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, low, high, levels, saturate: bool, inner: bool, ewgs: float):
        return dequantize(quantize(x, low, high, levels), low, high, levels).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, low, high, levels, ctx.saturate, ctx.inner, ctx.ewgs = inputs
        ctx.save_for_backward(x, low, high, levels)

    @staticmethod
    def backward(ctx, grad):
        x, low, high, levels = ctx.saved_tensors
        needs_x, needs_low, needs_high = ctx.needs_input_grad[:3]
        reached = _reached_by_sign if x.dtype == torch.float32 and x.device.type == "cpu" else _reached
        x, grad32, bottom = x.float(), grad.float(), 0.0 if low is None else low
        rounding = _rounding(x, low, high, levels) if ctx.inner or ctx.ewgs else 0.0
        if ctx.ewgs:
            grad32 = grad32 - ctx.ewgs * grad32.abs() * rounding
            grad = grad32.to(grad.dtype)
        grad_x = grad if needs_x else None
        if needs_x and ctx.saturate:
            grad_x = (grad32 * reached(x - bottom)).mul_(reached(high - x)).to(grad.dtype)
        if not (needs_low or needs_high):
            return grad_x, None, None, None, None, None, None
        below, above = reached(bottom - x) if needs_low else None, reached(x - high) if needs_high else None
        if ctx.inner:
            below, above = None if below is None else below - rounding, None if above is None else above + rounding
        grad_low = None if below is None or low is None else (grad32 * below).sum_to_size(low.shape)
        grad_high = None if above is None else (grad32 * above).sum_to_size(high.shape)
        return grad_x, grad_low, grad_high, None, None, None, None


@one_node(
    "(Tensor x, Tensor? low, Tensor high, Tensor levels, bool saturate, bool inner, float ewgs) -> Tensor",
    like=lambda x, low, high, *_: (x * (high if low is None else low + high)).to(x.dtype),
)
def _fake_quantize(
    x: Tensor, low: Tensor | None, high: Tensor, levels: Tensor, saturate: bool, inner: bool, ewgs: float
) -> Tensor:
    return _FakeQuantize.apply(x, low, high, levels, saturate, inner, ewgs)


def _rounding(x: Tensor, low: Tensor | None, high: Tensor, levels: Tensor) -> Tensor:
    """Return the rounding error as a share of the range, (y - x) / (high - low), of the clipped `x` rounded to y.

    The operations are few enough that torch.compile writes no intermediate tensor to memory.
    """
    scaled, zero = _scaled(x, low, high, levels)
    steps = levels - 1
    scaled = torch.minimum(scaled.clamp_min(-zero), steps - zero)
    return (torch.round(scaled) - scaled) / steps


def _reached(x: Tensor) -> Tensor:
    """Return 1.0 where `x` >= 0, else 0.0."""
    return (x >= 0).float()


def _reached_by_sign(x: Tensor) -> Tensor:
    """Return the same as `_reached`, in `x` itself, computed without a comparison.

    torch.compile saves the result of a comparison of fp32 values for the backward pass, because no other tensor on the
    way is as small; and on a CPU it writes bools one by one, which takes 4 ns each.
    """
    return x.sign_().add_(1.0).clamp_max_(1.0)


def fake_quantize(
    x: Float[Tensor, "*shape"],
    low: Float[Tensor, "*range"] | None,
    high: Float[Tensor, "*range"],
    levels: Float[Tensor, ""],
    *,
    saturate: bool = True,
    inner: bool = False,
    ewgs: float = 0.0,
) -> Float[Tensor, "*shape"]:
    """Clip `x` to [low, high] and round it to the nearest of `levels` equally spaced values.

    The computation is fp32, whatever the dtype of `x`. The gradient g of the result y passes on as follows:

    - to `x`: g on low <= x <= high, else 0 (straight-through);
    - to `high`: g on x >= high; to `low`: g on x <= low (as in PACT);
    - with `inner`, also between the ends: g (y - x) / (high - low) to `high`, and its negative to `low`. A step s with
      high = Qp s and low = -Qn s then receives LSQ's gradient, g (round(x / s) - x / s);
    - with `ewgs` = d, all of these use g + d |g| (x - y) / (high - low), `x` clipped, in place of g.

    Args:
        x: values of any floating-point dtype.
        low: lower end, broadcast against `x`: 0-dim for one range per tensor, (channels, 1, 1, 1) for one per channel;
            None means [0, high].
        high: upper end, above zero where `low` is None; where both ends are zero, so is the result.
        levels: number of levels, 2 or more.
        saturate: False passes the gradient to `x` everywhere, outside the range too.
        inner: whether values between the ends give the ends a gradient.
        ewgs: d, the scaling factor of EWGS; 0 is straight-through.

    Returns:
        The rounded values, of the shape and dtype of `x`.

    References:
        Straight-through estimator: Bengio et al. 2013, arXiv 1308.3432. PACT: arXiv 1805.06085. LSQ: arXiv 1902.08153.
        EWGS: arXiv 2104.00903.
    """
    return _fake_quantize(x, low, high, levels, saturate, inner, ewgs)


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, factor: float):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


@one_node("(Tensor(a) x, float factor) -> Tensor(a)", like=lambda x, _: x.view_as(x))
def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x` unchanged; in the backward pass its gradient is multiplied by `factor`."""
    return _ScaleGradient.apply(x, factor)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        total = grad.clone()
        dist.all_reduce(total)
        return total


def all_reduce(x: Tensor) -> Tensor:
    """Return the sum of `x` over all processes; needs an initialized process group.

    The result in every process depends on `x` in every process, so the backward pass sums the gradients as well.
    """
    return _AllReduce.apply(x)


def reduced(x: Tensor, shape: Sequence[int], how: Callable[..., Tensor]) -> Tensor:
    """Apply `how` (torch.mean, torch.amax ...) to the values that share a range of `shape`, which the result has."""
    if not shape:
        return how(x)
    return how(x, dim=[d for d, size in enumerate(shape) if size == 1], keepdim=True)


def positive(x: Tensor) -> Tensor:
    """Return |x|, at least `LEAST_END`.

    An optimizer step may carry a stored range below zero: it remains a range, and its gradient pushes it back.
    """
    return x.abs().clamp_min(LEAST_END)


def without_autocast(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Return `function` with autocast off inside it."""

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run
