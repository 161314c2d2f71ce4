"""Rules by which calibration chooses the end of a stored range: (quantizer, values) -> clip.

Nothing here trains; a user's own rule is a function of the same form.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spequant.functional import LEAST_END, fake_quantize
from spequant.quantizers.base import Quantizer, Rule

FEW = 32  # values; of as many or more, two steps by which the largest differs by half a code hardly differ
ROUNDS = 2  # of least squares, each of which only lowers the error
CLEARLY = 0.8  # of the squared error
AT_ONCE = 2**15  # values that a sweep holds; of small tensors one operation after another would cost more than its work


def largest(quantizer: Quantizer, values: Tensor) -> Tensor:
    """max|x|: nothing is clipped."""
    return quantizer.reduce(values.abs(), torch.amax)


largest.reads_ends = True  # type: ignore[attr-defined]


def percentile(q: float) -> Rule:
    """The rule that clips all but the largest 100 - `q` percent of |x|, 0 < q <= 100; at 100 it is `largest`."""
    if not 0 < q <= 100:
        raise ValueError(f"q is {q!r}; expected a percentage above 0 and at most 100, e.g. 99.9")
    return largest if q == 100 else _Percentile(q)


@dataclass(frozen=True)
class _Percentile:
    q: float

    def __call__(self, quantizer: Quantizer, values: Tensor) -> Tensor:
        return quantile(quantizer, values.abs(), self.q)


def quantile(quantizer: Quantizer, magnitudes: Tensor, q: float) -> Tensor:
    """The `q`-th percentile of `magnitudes` over everything that shares a range of `quantizer`."""
    rows = grouped(quantizer, magnitudes)
    k = max(1, min(rows.shape[1], round(rows.shape[1] * q / 100)))
    return rows.kthvalue(k, dim=1).values.reshape(quantizer.shape)


def least_squares(quantizer: Quantizer, values: Tensor) -> Tensor:
    """The clip, to 1/1000 of max|x|, at which the squared error of `quantizer`'s home grid is least.

    Two sweeps over fractions of max|x|: 1/100 apart, then 1/1000 apart around the best. Each channel its own. Of a
    weight also those at which its largest value lies on a level, or half-way between two, and the least squares of the
    best of them, which counts where it loses clearly less: of few values, or of few different ones.
    """
    top = largest(quantizer, values).clamp_min(LEAST_END)
    unit = torch.exp2(top.log2().floor())  # errors in it have squares, whatever the scale

    def errors(fractions: Tensor) -> list[Tensor]:
        """Of each row of `fractions`, which has the range's shape."""
        ends = [quantizer.bounds_at(top * fraction) for fraction in fractions]
        if len(ends) == 1:
            rounded = fake_quantize(values, *ends[0], quantizer.levels)
            return [quantizer.reduce(((rounded - values) / unit).square(), torch.mean)]
        shape, ranges = quantizer.shape, quantizer.shape or [1] * values.dim()
        sides = ([end.expand(shape or end.shape) for end in side] for side in zip(*ends, strict=True))
        low, high = (torch.stack(side).view(-1, *ranges) for side in sides)
        rounded = fake_quantize(values.expand(len(ends), *values.shape), low, high, quantizer.levels)
        return [quantizer.reduce((lost / unit).square(), torch.mean) for lost in rounded - values]

    def best(fractions: Tensor) -> Tensor:
        some = fractions.split(max(1, AT_ONCE // max(1, values.numel())))
        found = torch.stack([error for rows in some for error in errors(rows)])
        return fractions.gather(0, found.argmin(0, keepdim=True))[0]

    spread = [-1] + [1] * top.dim()
    coarse = best((torch.arange(1, 101, device=top.device) / 100).view(spread) * torch.ones_like(top))
    fraction = best((coarse + torch.arange(-9, 10, device=top.device).view(spread) / 1000).clamp(0.001, 1.0))
    if quantizer.of_weight:
        onto = best(_onto_levels(quantizer, values).to(top).view(spread) * torch.ones_like(top))
        for _ in range(ROUNDS):
            rounded = fake_quantize(values, *quantizer.bounds_at(top * onto), quantizer.levels) / unit
            fitted = quantizer.reduce(values / unit * rounded, torch.sum)
            onto = onto * torch.where(fitted > 0, fitted / quantizer.reduce(rounded.square(), torch.sum), 1.0)
        ((before,), (after,)) = errors(fraction[None]), errors(onto[None])
        fraction = torch.where(after < CLEARLY * before, onto, fraction)
    return top * fraction


def _onto_levels(quantizer: Quantizer, values: Tensor) -> Tensor:
    """The fractions of max|x| as clips at which max|x| lies on each level, or half-way between two, of the outer half
    of the grid; a finer grid has the levels of a coarser one among its own, or without zero, of one of a third."""
    low, high = (float(end) for end in quantizer.bounds_at(torch.ones(())))
    per_step = (float(quantizer.levels) - 1) / (high - low)
    last = max(-low, high) * per_step
    lowest = min(-low, high) * per_step / (3 if quantizer.leaves_zero_out() else 2)
    spacing = 0.5 if grouped(quantizer, values).shape[1] < FEW else 1.0
    return per_step / (last - torch.arange(0, last - lowest, spacing))


def best_zero(values: Tensor, levels: int) -> int:
    """The code of zero, 0 to `levels` - 1, at which the best of a hundred steps has the least squared error.

    Steps up to the one that reaches from the least value to the largest; tried are zero points at which both ends are
    used. Of sorted values the running sums tell how many lie nearest to each level and what they add up to, n and t;
    the squared error is sum(level^2 n - 2 level t) and what is the same for all grids. All zero: the middle.
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
        found = int(errors.argmin())
        best = min(best, (float(errors[found]), zeros[found]))
    return best[1]


def grouped(quantizer: Quantizer, x: Tensor) -> Tensor:
    """`x` as (ranges, elements of each)."""
    if max(quantizer.shape, default=1) == 1:
        return x.reshape(1, -1)
    channel = max(range(x.dim()), key=lambda d: quantizer.shape[d])
    return x.movedim(channel, 0).reshape(x.shape[channel], -1)


by_name: dict[str, Callable[..., Tensor]] = {"least-squares": least_squares, "largest": largest}
