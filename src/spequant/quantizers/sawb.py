"""SAWB: statistics-aware weight binning (Choi et al. 2018, arXiv 1807.06964)."""

import torch
from torch import Tensor

from spequant.quantizers.base import Quantizer

COEFFICIENTS: dict[int, tuple[float, float]] = {
    # levels: (c1, c2); published by the paper or in its authors' later code
    2: (0.0, 1.0),
    4: (3.212, -2.178),
    8: (7.509, -6.892),
    16: (12.68, -12.80),
    127: (28.24, -30.81),
    255: (31.76, -35.04),
    # refitted by tools/fit_sawb.py
    31: (15.320, -15.578),
    63: (20.273, -21.336),
}


class SAWB(Quantizer):
    """A clip that follows from the weight's first two absolute moments; nothing is trained or stored.

    Forward    a = c1 sqrt(E[w^2]) + c2 E|w|  (max|w| where that is not positive), from the very weight at hand
               w_q = (2 r - 1) a,  r = round((L - 1) (clip(w / a, -1, 1) / 2 + 1/2)) / (L - 1)
    Backward   dw_q/dw = 1 everywhere (`clip_gradient=False`, "SAWB+"), or 0 on |w| > a (`clip_gradient=True`, the
               paper, which leaves 13.8 % of Gaussian weights without gradient at 2 bits); none through `a`

    Levels L = 2^b to 4 bits, without zero; 2^b - 1 from 5 bits on, so that the codes fit int8. At 4 levels the paper's
    coefficients. Where nothing is published (5 and 6 bits) they are refitted by tools/fit_sawb.py.
    """

    stored = False
    weights_only = True
    fits_few = False  # c1 and c2 belong to the moments of a distribution, not of a depthwise channel's nine samples

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
        c1, c2 = COEFFICIENTS[self.level_count()]
        with torch.no_grad():
            w = x.float()
            clip = c1 * self.reduce(w.square(), torch.mean).sqrt() + c2 * self.reduce(w.abs(), torch.mean)
            clip = torch.where(clip > 0, clip, self.reduce(w.abs(), torch.amax)).clamp_min(1e-8)
            return -clip, clip

    def config(self) -> dict[str, object]:
        return {**super().config(), "clip_gradient": self.clip_gradient}
