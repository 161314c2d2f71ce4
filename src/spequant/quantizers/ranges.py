"""Calibration rules, (quantizer, values) -> clip: each chooses the end of a stored range.

Nothing here trains. A user may write a rule of the same form. For quantizers with `power_of_two`, the rules here return
a clip at which the step is one: `largest` and `percentile` the least that clips no more than they say, `least_squares`
that of least error. Of another rule's clip, the quantizer takes the nearest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spequant.functional import LEAST_END, dequantize, nearest_power, power_above, quantize
from spequant.quantizers.base import Quantizer, Rule

FEW_VALUES = 32
"""Ranges of fewer values are searched more finely; with more values, steps half a code apart have nearly one error."""
FIT_ROUNDS = 2
"""Rounds of least squares; none raises the error."""
CLEARLY_LESS = 0.8
"""Factor below which a squared error counts as clearly less than another."""
SWEEP_VALUES = 2**17
"""Values that a sweep holds in memory at once; small tensors are batched, since single operations on them are slow."""


def largest(quantizer: Quantizer, values: Tensor) -> Tensor:
    """Calibration rule: the clip max|x|, which clips nothing."""
    return with_power_of_two(quantizer, quantizer.reduce(values.abs(), torch.amax), power_above)


largest.reads_ends = True  # type: ignore[attr-defined]


def percentile(q: float) -> Rule:
    """Return the rule whose clip is the `q`-th percentile of |x|; at 100 this is `largest`.

    Args:
        q: percentage of the values that are not clipped, above 0 and at most 100.

    Raises:
        ValueError: `q` is out of range.
    """
    if not 0 < q <= 100:
        raise ValueError(f"q is {q!r}; expected a percentage above 0 and at most 100, e.g. 99.9")
    return largest if q == 100 else _Percentile(q)


@dataclass(frozen=True)
class _Percentile:
    q: float

    def __call__(self, quantizer: Quantizer, values: Tensor) -> Tensor:
        return quantile(quantizer, values.abs(), self.q)


def quantile(quantizer: Quantizer, magnitudes: Tensor, q: float) -> Tensor:
    """Return the `q`-th percentile of `magnitudes` for each range of `quantizer`, in its shape."""
    rows = grouped(magnitudes, quantizer.shape)
    k = max(1, min(rows.shape[1], round(rows.shape[1] * q / 100)))
    clip = rows.kthvalue(k, dim=1).values.reshape(quantizer.shape)
    return with_power_of_two(quantizer, clip, power_above)


def with_power_of_two(quantizer: Quantizer, clip: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `clip`, of the quantizer's shape; if it has `power_of_two`, the clip of the step that `rounded` gives."""
    if not quantizer.power_of_two:
        return clip
    low, high = quantizer.bounds_at(clip)
    step = ((high - low) / (quantizer.home_levels - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    return clip * (rounded(step) / step)


def least_squares(quantizer: Quantizer, values: Tensor) -> Tensor:
    """Calibration rule: the clip of least squared error on the home grid, to 1/1000 of max|x|, for each range.

    Two sweeps try fractions of max|x|: first 1/100 apart, then 1/1000 apart around the best. For a weight a third sweep
    tries the clips that put max|x| on a level or half-way between two, and fits the best of them by least squares. Its
    result is taken if the error is clearly less, as happens with few values or few different ones.
    """
    top = largest(quantizer, values).clamp_min(LEAST_END)
    unit = torch.exp2(top.log2().floor())  # errors in this unit have squares within fp32, whatever the scale

    def stepped(clip: Tensor) -> Tensor:
        return with_power_of_two(quantizer, clip, nearest_power)

    def errors(fractions: Tensor) -> list[Tensor]:
        """Return the squared errors of each row of `fractions`; a row has the shape of the range."""
        ends = [quantizer.bounds_at(stepped(top * fraction)) for fraction in fractions]
        if len(ends) == 1:
            rounded = _rounded(values, *ends[0], quantizer.levels)
            return [quantizer.reduce(rounded.sub_(values).div_(unit).square_(), torch.mean)]
        shape, ranges = quantizer.shape, quantizer.shape or [1] * values.dim()
        sides = ([end.expand(shape or end.shape) for end in side] for side in zip(*ends, strict=True))
        low, high = (torch.stack(side).view(-1, *ranges) for side in sides)
        rounded = _rounded(values.expand(len(ends), *values.shape), low, high, quantizer.levels)
        return [quantizer.reduce((rounding / unit).square(), torch.mean) for rounding in rounded - values]

    def best(fractions: Tensor) -> Tensor:
        """Return the fraction of least error for each range."""
        table = torch.empty_like(fractions)  # before: a small tensor between the large ones would fragment memory
        rows = max(1, SWEEP_VALUES // max(1, values.numel()))
        for part, results in zip(fractions.split(rows), table.split(rows), strict=True):
            torch.stack(errors(part), out=results)
        return fractions.gather(0, table.argmin(0, keepdim=True))[0]

    column = [-1] + [1] * top.dim()
    coarse = best((torch.arange(1, 101, device=top.device) / 100).view(column) * torch.ones_like(top))
    fraction = best((coarse + torch.arange(-9, 10, device=top.device).view(column) / 1000).clamp(0.001, 1.0))
    if quantizer.of_weight:
        fit = best(_fractions_on_levels(quantizer, values).to(top).view(column) * torch.ones_like(top))
        for _ in range(FIT_ROUNDS):
            rounded = _rounded(values, *quantizer.bounds_at(stepped(top * fit)), quantizer.levels) / unit
            product = quantizer.reduce(values / unit * rounded, torch.sum)
            fit = fit * torch.where(product > 0, product / quantizer.reduce(rounded.square(), torch.sum), 1.0)
        ((sweep_error,), (fit_error,)) = errors(fraction[None]), errors(fit[None])
        fraction = torch.where(fit_error < CLEARLY_LESS * sweep_error, fit, fraction)
    return stepped(top * fraction)


def _rounded(x: Tensor, low: Tensor, high: Tensor, levels: Tensor) -> Tensor:
    """Return what `fake_quantize` does, without autograd, a call of which takes as long as rounding 20,000 numbers."""
    return dequantize(quantize(x, low, high, levels), low, high, levels)


def _fractions_on_levels(quantizer: Quantizer, values: Tensor) -> Tensor:
    """Return the clips, as fractions of max|x|, that put max|x| on a level, or for few values also between two levels.

    Only the outer half of the grid is tried, or the outer two thirds of a grid without zero: a finer grid contains the
    levels of the grid with twice its step, or three times its step without zero.
    """
    low, high = (float(end) for end in quantizer.bounds_at(torch.ones(())))
    per_step = (float(quantizer.levels) - 1) / (high - low)
    last = max(-low, high) * per_step
    lowest = min(-low, high) * per_step / (3 if quantizer.leaves_zero_out() else 2)
    spacing = 0.5 if grouped(values, quantizer.shape).shape[1] < FEW_VALUES else 1.0
    return per_step / (last - torch.arange(0, last - lowest, spacing))


def best_zero(values: Tensor, levels: int) -> int:
    """Return the zero point, 0 to `levels` - 1, whose grid has the least squared error at the best of 100 steps.

    The grid of the largest step spans the values from least to largest. Zero points that would leave levels at an end
    of the grid unused are not tried. Running sums of the sorted values give, for each level, the number n and the sum t
    of the values nearest to it. The squared error is sum(level^2 n - 2 level t), plus a term that is the same for all
    grids. All-zero values give the middle.

    Args:
        values: sample of an activation, one-dimensional.
        levels: number of levels, 2 or more.
    """
    x = values.double().sort().values
    sums = torch.cat([x.new_zeros(1), x.cumsum(0)])
    low, high, steps = min(0.0, float(x[0])), max(0.0, float(x[-1])), levels - 1
    best = math.inf, steps // 2
    for i in range(1, 101 if low < high else 1):
        step = (high - low) * i / 100 / steps
        zeros = range(max(0, steps - math.ceil(high / step)), min(steps, math.ceil(-low / step)) + 1)
        codes = torch.arange(levels, device=x.device) - torch.tensor(zeros, device=x.device).view(-1, 1)
        below = torch.searchsorted(x, (codes[:, 1:] - 0.5) * step)
        below = torch.cat([torch.zeros_like(codes[:, :1]), below, torch.full_like(codes[:, :1], len(x))], 1)
        grid = codes * step
        errors = (grid.square() * below.diff() - 2 * grid * sums[below].diff()).sum(1)
        least = int(errors.argmin())
        best = min(best, (float(errors[least]), zeros[least]))
    return best[1]


def grouped(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return `x` as a matrix, (ranges, elements per range), where `shape` is that of the ranges."""
    if max(shape, default=1) == 1:
        return x.reshape(1, -1)
    channel = max(range(x.dim()), key=lambda d: shape[d])
    return x.movedim(channel, 0).reshape(x.shape[channel], -1)
