"""SAWB: statistics-aware weight binning (Choi et al. 2018, arXiv 1807.06964)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spequant.quantizers.base import Quantizer
from spequant.quantizers.least_squares import nearest_step
from spequant.quantizers.ranges import FEW, grouped
from spequant.quantizers.settings import QuantizerSettings

COEFFICIENTS: dict[int, tuple[float, float]] = {
    2: (0.0, 1.0),
    4: (3.212, -2.178),
    8: (7.509, -6.892),
    16: (12.68, -12.8),
}
"""{levels: (c1, c2)}, published by the paper or in its authors' later code. What they give for more levels nearly
cancels (31.76 and -35.04 at 255): right for one shape of distribution alone."""

MUCH = 1.2  # times the error


class SAWB(Quantizer):
    """A clip that follows from the weight's first two absolute moments; nothing is trained or stored.

    Forward    a = c1 sqrt(E[w^2]) + c2 E|w|, from the very weight at hand
               w_q = (2 r - 1) a,  r = round((L - 1) (clip(w / a, -1, 1) / 2 + 1/2)) / (L - 1)
    Backward   dw_q/dw = 1 everywhere (`clip_gradient=False`, "SAWB+"), or 0 on |w| > a (`clip_gradient=True`, the
               paper, which leaves 13.8 % of Gaussian weights without gradient at 2 bits); none through `a`

    Levels L = 2^b to 4 bits, without zero; 2^b - 1 from 5 bits on, so that the codes fit int8. At 4 levels the paper's
    coefficients. Ours is where the moments do not tell the clip:

    - max|w| where `a` is no clip between 0 and max|w|, or where what it cuts off, E[(|w| - a)+^2], is more than
      rounding up to max|w| loses on average, (max|w| / (L - 1))^2 / 3: weights all alike or far from zero;
    - the clip of least squared error, `LeastSquares`', of ranges of fewer than `FEW` values;
    - from 5 bits on, where `a` is a small difference of large numbers (at 8 bits it lost 1.4 times the least error on
      5,120 Gaussian values and 28 times on uniform ones), max|w|, unless it loses `MUCH` times what that clip does: the
      least of many nearly equal errors jumps from step to step as the weight moves, max|w| moves with it.
    """

    stored = False
    weights_only = True
    vanishes = True
    fits_few = False  # as LeastSquares' then

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
    ):
        if not signed:
            raise ValueError(f"signed is {signed!r}; SAWB's grid is symmetric around zero: use PACT or LSQ here")
        super().__init__(bits, signed=True, shape=shape, of_weight=of_weight)
        self.saturate = self.clip_gradient = clip_gradient

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2**bits if bits <= 4 else 2**bits - 1

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.level_count()
        with torch.no_grad():
            w = x.float()
            rows, half = grouped(self, w), (levels - 1) / 2
            many = rows.shape[1] >= FEW
            if many and levels in COEFFICIENTS:
                clip = self._published(w, levels)
            else:
                clip = half * nearest_step(rows, half).reshape(self.shape)
                clip = self._steady(w, clip, half) if many else clip
            return -clip, clip

    def _steady(self, w: Tensor, nearest: Tensor, half: float) -> Tensor:
        """max|w| unless `nearest`, whose choice may jump from step to step, loses clearly less."""
        top = self.reduce(w.abs(), torch.amax)
        unit = torch.where(top > 0, top, 1.0)

        def lost(clip: Tensor) -> Tensor:
            step = torch.where(clip > 0, clip, unit) / half
            rounded = torch.round(w / step).clamp(-half, half) * step
            return self.reduce(((rounded - w) / unit).square(), torch.mean)

        return torch.where(lost(top) <= MUCH**2 * lost(nearest), top, nearest)

    def _published(self, w: Tensor, levels: int) -> Tensor:
        c1, c2 = COEFFICIENTS[levels]
        size = w.abs()
        clip = c1 * self.reduce(w.square(), torch.mean).sqrt() + c2 * self.reduce(size, torch.mean)
        top = self.reduce(size, torch.amax)
        cut_off = self.reduce((size - clip).clamp_min(0).square(), torch.mean)
        fits = (clip > 0) & (clip < top) & (cut_off <= (top / (levels - 1)).square() / 3)
        return torch.where(fits, clip, top)

    def config(self) -> dict[str, object]:
        return {**super().config(), "clip_gradient": self.clip_gradient}
