"""Tensors in, tensors out: rounding, fake quantization and their gradients.

The only file with autograd tricks. Modules, state and policy live elsewhere.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

LEAST_END = 1e-30
"""Of a range, so that it stays one."""
LEAST_WIDTH = 1e-36
"""That a range is divided by: one from 0 to 0, of weights that are zero throughout, gives zeros and no NaN."""


def zero_point(low: Tensor | None, high: Tensor, levels: Tensor) -> Tensor:
    """Code of the value zero on the grid of `levels` levels over [low, high]; low None: [0, high].

    An integer, so that zero is on the grid; half-way between two codes where the range is symmetric and the number
    of levels even (SAWB at 2 bits: -a, -a/3, a/3, a), the only grids here that leave zero out.
    """
    if low is None:
        return torch.zeros_like(high)
    steps = levels - 1
    return torch.where(low == -high, steps * 0.5, torch.round(-low * steps / (high - low)))


def _scaled(x: Tensor, low: Tensor | None, high: Tensor, levels: Tensor) -> tuple[Tensor, Tensor | float]:
    """(`x` in steps of the grid, the whole number that makes it a code after rounding)."""
    steps = levels - 1
    if low is None:
        return x.float() * (steps / high), 0.0
    zero = zero_point(low, high, levels)
    half = torch.where(zero == zero.round(), 0.0, zero)  # an integer is added after rounding, and loses no bits
    rate = steps / (high - low).clamp_min(LEAST_WIDTH)
    return x.float() * rate + half, zero - half


def quantize(x: Tensor, low: Tensor | None, high: Tensor, levels: Tensor) -> Tensor:
    """Codes 0 .. levels - 1 (fp32, integral) of `x` on the grid over [low, high]; low None: [0, high].

    Ties go to the even multiple of a step, as in ONNX's QuantizeLinear; on a grid without zero to the even code.
    """
    scaled, zero = _scaled(x, low, high, levels)  # our own tensor: changed in place, which halves the time
    return scaled.round_().add_(zero).clamp_min_(0.0).clamp_max_(levels - 1)


def dequantize(codes: Tensor, low: Tensor | None, high: Tensor, levels: Tensor) -> Tensor:
    """Values of `codes`: a quotient of integers times the range, so that a finer grid holds the very same floats."""
    if low is None:
        return (codes / (levels - 1)).mul_(high)
    return (codes - zero_point(low, high, levels)).div_(levels - 1).mul_(high - low)


class _FakeQuantize(torch.autograd.Function):
    """Saves `x` and computes everything again from it. Compiled, `x` itself is often not even saved: batch norm keeps
    its input in any case, and what lies between that and `x` is computed within the kernels of the backward pass."""

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
        to_x, to_low, to_high = ctx.needs_input_grad[:3]
        reached = _reached_by_sign if x.dtype == torch.float32 and x.device.type == "cpu" else _reached
        x, grad32, bottom = x.float(), grad.float(), 0.0 if low is None else low
        rounding = _rounding(x, low, high, levels) if ctx.inner or ctx.ewgs else 0.0
        if ctx.ewgs:
            grad32 = grad32 - ctx.ewgs * grad32.abs() * rounding
            grad = grad32.to(grad.dtype)
        grad_x = grad if to_x else None
        if to_x and ctx.saturate:
            grad_x = (grad32 * reached(x - bottom) * reached(high - x)).to(grad.dtype)
        if not (to_low or to_high):
            return grad_x, None, None, None, None, None, None
        below, above = reached(bottom - x) if to_low else 0.0, reached(x - high)
        rounding = rounding if ctx.inner else 0.0
        grad_low = (grad32 * (below - rounding)).sum_to_size(low.shape) if to_low and low is not None else None
        grad_high = (grad32 * (above + rounding)).sum_to_size(high.shape) if to_high else None
        return grad_x, grad_low, grad_high, None, None, None, None


def _rounding(x: Tensor, low: Tensor | None, high: Tensor, levels: Tensor) -> Tensor:
    """(y - x) / (high - low) of `x` clipped, then rounded to y: few enough operations for torch.compile to write none
    of them to memory."""
    scaled, zero = _scaled(x, low, high, levels)
    steps = levels - 1
    scaled = torch.minimum(scaled.clamp_min(-zero), steps - zero)
    return (torch.round(scaled) - scaled) / steps


def _reached(x: Tensor) -> Tensor:
    """1.0 where `x` >= 0, else 0.0."""
    return (x >= 0).float()


def _reached_by_sign(x: Tensor) -> Tensor:
    """The same without a comparison. Those of values of four bytes torch.compile keeps for the backward pass, as the
    smallest tensors on the way, and on a CPU it stores bools one by one, at 4 ns each."""
    return (torch.sign(x) + 1).clamp_max(1.0)


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
    """`x` rounded to the nearest of `levels` equally spaced values over [low, high], clipped beyond.

    Computed in fp32 whatever the dtype of `x`, which the result has. `low` and `high` broadcast against `x`
    (0-dim: one range a tensor; (channels, 1, 1, 1): one a channel); low None: [0, high], high above zero. Where both
    are zero, so is the result. Backward:

    - to `x`, straight-through (Bengio et al., arXiv 1308.3432): 1 on low <= x <= high, else 0; 1 everywhere where
      `saturate` is False.
    - to `high`: 1 on x >= high, to `low`: 1 on x <= low (PACT, arXiv 1805.06085); with `inner`, between the ends of the
      grid also the rounding error's share, +-(y - x) / (high - low), which makes a step s with high = Qp s and
      low = -Qn s receive LSQ's gradient, round(x / s) - x / s (arXiv 1902.08153).
    - `ewgs`, d: all of these from g + d |g| (x - y) / (high - low) in place of the gradient g at y, `x` clipped
      (EWGS, arXiv 2104.00903).
    """
    return _FakeQuantize.apply(x, low, high, levels, saturate, inner, ewgs)


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


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself; its gradient is multiplied by `factor`."""
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
    """`x` summed over all processes. Each one's result depends on every one's `x`, so gradients are summed as well."""
    return _AllReduce.apply(x)


def positive(x: Tensor) -> Tensor:
    """|x|, at least `LEAST_END`: a stored range that a step carries below zero stays one, and is pushed back."""
    return x.abs().clamp_min(LEAST_END)
