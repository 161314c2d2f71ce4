"""SAWB: statistics-aware weight binning (Choi et al. 2018, arXiv 1807.06964)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spequant.functional import reduced
from spequant.functional.graphs import one_node
from spequant.quantizers.base import Quantizer
from spequant.quantizers.least_squares_step import nearest_power_step, nearest_step
from spequant.quantizers.ranges import FEW_VALUES, grouped
from spequant.quantizers.settings import QuantizerSettings

COEFFICIENTS: dict[int, tuple[float, float]] = {
    2: (0.0, 1.0),
    4: (3.212, -2.178),
    8: (7.509, -6.892),
    16: (12.68, -12.8),
}
"""{levels: (c1, c2)}, published by the paper or in its authors' later code. For more levels the published pairs nearly
cancel each other (31.76 and -35.04 at 255 levels), and so fit only one shape of distribution."""

TOLERATED_LOSS = 1.2
"""Factor by which the root mean square error at max|w| may exceed the least one."""


class SAWB(Quantizer):
    """A clip `a` that follows from the first two absolute moments of the weight; nothing is trained or stored.

    Forward    a = c1 sqrt(E[w^2]) + c2 E|w|, computed from the weight at every forward
               w_q = (2 r - 1) a,  r = round((L - 1) (clip(w / a, -1, 1) / 2 + 1/2)) / (L - 1)
    Backward   dw_q/dw = 1 everywhere (`clip_gradient=False`, "SAWB+"), or 0 on |w| > a (`clip_gradient=True`, as in the
               paper, which leaves 13.8 % of Gaussian weights without gradient at 2 bits); none through `a`

    At 1 to 4 bits the grid has L = 2^b levels, without zero; from 5 bits on L = 2^b - 1, so that the codes fit int8.
    Where the two moments do not determine a good clip, this library uses another one:

    - max|w| if `a` does not lie between 0 and max|w|, or if clipping at `a` loses more, E[(|w| - a)+^2], than rounding
      up to max|w| does on average, (max|w| / (L - 1))^2 / 3. This is so for weights that are all alike, or far from 0.
    - The clip of least squared error (`LeastSquares`) for ranges of fewer than `FEW_VALUES` values.
    - From 5 bits on, max|w|, because `a` would be a small difference of large numbers (at 8 bits its error was 1.4
      times the least one on 5,120 Gaussian values, and 28 times on uniform ones); or the clip of least error, where the
      error at max|w| is more than `TOLERATED_LOSS` times as large. The clip of least error is not always taken because
      many clips have nearly that error, so that it jumps as the weight moves, while max|w| moves with the weight.
    - With `power_of_two`, where the formula holds the step nearest to its own, elsewhere that of least squared error.

    Args:
        bits, signed, shape, of_weight, power_of_two: as in `Quantizer`; the grid is always signed.
        clip_gradient: whether weights beyond the clip get no gradient.

    Raises:
        ValueError: `signed` is False.

    References:
        Choi et al. 2018, arXiv 1807.06964.
    """

    stored = False
    weights_only = True
    vanishes = True
    fits_few = False  # two moments of a few values say little

    @dataclass(frozen=True, kw_only=True)
    class Settings(QuantizerSettings):
        """SAWB: a clip from the weight's moments."""

        clip_gradient: bool = False
        """weights beyond the clip get no gradient"""

    def __init__(
        self,
        bits: int | None,
        *,
        clip_gradient: bool = False,
        signed: bool | None = True,
        shape: tuple[int, ...] = (),
        of_weight: bool = True,
        power_of_two: bool = False,
    ):
        if not signed:
            raise ValueError(f"signed is {signed!r}; SAWB's grid is symmetric around zero: use PACT or LSQ here")
        super().__init__(bits, signed=True, shape=shape, of_weight=of_weight, power_of_two=power_of_two)
        self.saturate = self.clip_gradient = clip_gradient

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2**bits if bits <= 4 else 2**bits - 1

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            clip = _clip(x, self.shape, self.level_count(), self.power_of_two)
            return -clip, clip

    def config(self) -> dict[str, object]:
        return {**super().config(), "clip_gradient": self.clip_gradient}


@one_node(
    "(Tensor x, int[] shape, int levels, bool power_of_two) -> Tensor",
    like=lambda x, shape, levels, power_of_two: x.new_empty(shape).float(),
    called_up_to=math.inf,
)
def _clip(x: Tensor, shape: Sequence[int], levels: int, power_of_two: bool) -> Tensor:
    """Return the clip `a` of each range of the weight `x`, fp32, of `shape`, that of the ranges."""
    w = x.float()
    rows, half = grouped(w, shape), (levels - 1) / 2
    many = rows.shape[1] >= FEW_VALUES
    if many and levels in COEFFICIENTS:
        return _published(w, shape, levels)
    search = nearest_power_step if power_of_two else nearest_step
    clip = half * search(rows, half).reshape(shape)
    return _steady(w, shape, clip, half) if many and not power_of_two else clip


def _steady(w: Tensor, shape: Sequence[int], nearest: Tensor, half: float) -> Tensor:
    """Return max|w|, or `nearest`, the clip of least error, where that loses clearly less."""
    top = reduced(w.abs(), shape, torch.amax)
    unit = torch.where(top > 0, top, 1.0)

    def error(clip: Tensor) -> Tensor:
        step = torch.where(clip > 0, clip, unit) / half
        rounded = torch.round(w / step).clamp(-half, half) * step
        return reduced(((rounded - w) / unit).square(), shape, torch.mean)

    return torch.where(error(top) <= TOLERATED_LOSS**2 * error(nearest), top, nearest)


def _published(w: Tensor, shape: Sequence[int], levels: int) -> Tensor:
    """Return the clip of the paper's formula, or max|w| where the formula does not fit."""
    c1, c2 = COEFFICIENTS[levels]
    size = w.abs()
    clip = c1 * reduced(w.square(), shape, torch.mean).sqrt() + c2 * reduced(size, shape, torch.mean)
    top = reduced(size, shape, torch.amax)
    cut_off = reduced((size - clip).clamp_min(0).square(), shape, torch.mean)
    fits = (clip > 0) & (clip < top) & (cut_off <= (top / (levels - 1)).square() / 3)
    return torch.where(fits, clip, top)
