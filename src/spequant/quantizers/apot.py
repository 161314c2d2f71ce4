"""APoT: weights as sums of powers of two (Li, Dong and Wang, ICLR 2020, arXiv 1909.13144)."""

import torch
from torch import Tensor

from spequant.functional import dequantize, positive
from spequant.quantizers.base import Quantizer, Rule
from spequant.quantizers.lsq import LSQ

# Bits of a magnitude -> the terms that add up, each one of its values: multiples of the unit, all powers of two.
TERMS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((0, 1),),
    2: ((0, 1, 2, 4),),
    3: ((0, 1, 4, 8), (0, 2)),
    4: ((0, 2, 8, 32), (0, 1, 4, 16)),
    5: ((0, 2, 16, 64), (0, 1, 8, 32), (0, 4)),
}

ROUNDING = 1e-6  # of the mean of fp32 numbers, as a share of them


def magnitudes(bits: int) -> list[int]:
    """The 2^(bits - 1) magnitudes of a weight of `bits` bits, sorted, in units: {0, 1, 2, 4} at 3 bits."""
    values = [0]
    for term in TERMS[bits - 1]:
        values = [a + b for a in values for b in term]
    return sorted(values)


def _start(quantizer: Quantizer, values: Tensor) -> Tensor:
    return torch.full(quantizer.shape, 3.0)


class APoT(Quantizer):
    """Levels that crowd around zero, as weights do, and whose products are sums of shifts. One trained clip `a`.

    Forward    w~ = (w - mean) / deviation;  w_q = a P(clip(w~ / a, -1, 1)),  P: to the nearest of +- a sum of one value
               of each term of `TERMS`, divided by the largest sum; 2 bits: ternary
    Backward   straight-through P: dw_q/dw~ = 1 inside, else 0;  dw_q/da = w_q / a - w~ / a inside, +-1 beyond; and
               through mean and deviation, as written
    Start      a = 3

    Activations are left to uniform quantizers: other widths on the same bounds, and integer arithmetic, ask for equal
    steps. The codes are those of the uniform grid that has the levels among its own, up to +-100 at 6 bits, the most
    that int8 takes; a file holds them at that grid's width (4, 5, 7 and 8 bits for 3, 4, 5 and 6). As with DoReFa the
    scale of a weight is lost, so batch norm has to follow the layer.
    """

    weights_only = True
    rule: Rule | None = staticmethod(_start)
    ewgs = None
    points: Tensor
    middles: Tensor

    def __init__(
        self, bits: int | None, *, signed: bool | None = True, shape: tuple[int, ...] = (), of_weight: bool = True
    ):
        if not signed:
            raise ValueError(f"signed is {signed!r}; APoT quantizes weights, around zero: use PACT or LSQ here")
        if isinstance(bits, int) and bits - 1 not in TERMS:
            raise ValueError(f"bits is {bits!r}; expected 2 to 6 for APoT: beyond, the levels' codes leave int8")
        super().__init__(bits, signed=True, shape=shape, of_weight=of_weight)
        found = torch.tensor(magnitudes(bits or 2)).float()
        self.register_buffer("points", found, persistent=False)
        self.register_buffer("middles", (found[1:] + found[:-1]) / 2 / found[-1], persistent=False)
        self.clip = self.new_range()

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2 * magnitudes(bits)[-1] + 1

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bounds_at(positive(self.range_of(self.clip)))

    def set_clip(self, clip: Tensor) -> None:
        with torch.no_grad():
            self.clip.copy_(clip.reshape_as(self.clip))

    def at(self, bits: int | None) -> Quantizer:
        """APoT from 2 to 6 bits, LSQ at others, such as the first and last layer's 8."""
        if bits is None or bits - 1 in TERMS:
            return self.like(bits=bits)
        return LSQ(bits, shape=self.shape, of_weight=self.of_weight)

    def quantized(self, x: Tensor) -> Tensor:
        clip = positive(self.range_of(self.clip))
        share = (self.normalised(x) / clip).clamp(-1, 1)
        v = share.detach()
        smooth = clip * (share + (self._units(v) / self.points[-1] - v))
        values = dequantize(self._units(v) + self.points[-1], *self.bounds(x), self.levels).detach()
        return (values + (smooth - smooth.detach())).to(x.dtype)  # the very floats of the codes

    def nearest(self, x: Tensor) -> Tensor:
        v = (self.normalised(x) / positive(self.range_of(self.clip))).clamp(-1, 1)
        return self._units(v) + self.points[-1]

    def normalised(self, w: Tensor) -> Tensor:
        """(w - mean) / deviation of what shares a range, fp32; of equal weights w - mean, whose slope is 1. A row of
        padding that is zero stays as it is, and gets no gradient through the others' mean."""
        w = w.float()
        seen = w if self.padding is None else torch.where(self.something(w), w, w.detach())
        centred = seen - self.reduce(seen, torch.mean)
        variance = self.reduce(centred.square(), torch.mean)
        differ = variance > ROUNDING**2 * self.reduce(w.detach().square(), torch.mean)
        normalised = centred / torch.where(differ, variance, 1.0).sqrt()
        return normalised if self.padding is None else torch.where(self.something(w), normalised, w)

    def _units(self, v: Tensor) -> Tensor:
        """The nearest level of `v`, in [-1, 1], as a signed whole number of units."""
        return torch.sign(v) * self.points[torch.bucketize(v.abs().contiguous(), self.middles)]
