"""APoT: weights as sums of powers of two (Li, Dong and Wang, ICLR 2020, arXiv 1909.13144)."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from spequant.functional import dequantize, positive
from spequant.quantizers.base import Quantizer, Rule
from spequant.quantizers.lsq import LSQ

TERMS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((0, 1),),
    2: ((0, 1, 2, 4),),
    3: ((0, 1, 4, 8), (0, 2)),
    4: ((0, 2, 8, 32), (0, 1, 4, 16)),
    5: ((0, 2, 16, 64), (0, 1, 8, 32), (0, 4)),
}
"""{bits of a magnitude: its terms}. A magnitude is a sum of one value per term, in units: 0 or a power of two."""

ROUNDING = 1e-6
"""Relative rounding error of a mean of fp32 numbers; a deviation below this share of the rms counts as zero."""


def magnitudes(bits: int) -> list[int]:
    """Return the 2^(bits - 1) magnitudes at `bits` bits, sorted, in units: [0, 1, 2, 4] at 3 bits."""
    values = [0]
    for term in TERMS[bits - 1]:
        values = [a + b for a in values for b in term]
    return sorted(values)


def _start(quantizer: Quantizer, values: Tensor) -> Tensor:
    return torch.full(quantizer.shape, 3.0)


def _tables(bits: int) -> dict[str, Tensor]:
    """Return the levels' magnitudes in units, and the middles between them as shares of the largest."""
    points = torch.tensor(magnitudes(bits)).float()
    return {"points": points, "middles": (points[1:] + points[:-1]) / 2 / points[-1]}


class APoT(Quantizer):
    """Weights as sums of powers of two, with a trained clip `a`.

    The levels lie densely around zero, as weights do, and a product with a weight is a sum of shifts.

    Forward    w~ = (w - mean) / deviation;  w_q = a P(clip(w~ / a, -1, 1));  P rounds to the nearest +-m / max m,
               where m is a sum of one value per term of `TERMS`; ternary at 2 bits
    Backward   straight-through P: dw_q/dw~ = 1 inside, else 0;  dw_q/da = w_q / a - w~ / a inside, +-1 beyond;
               and through mean and deviation, as written
    Start      a = 3

    Activations need a uniform quantizer, because other precisions over the same bounds and integer arithmetic need
    equal steps. Codes count the steps of the finest uniform grid that contains all levels: up to +-100 at 6 bits, and
    more bits would leave int8. Files store codes at the width of that grid (4, 5, 7 and 8 bits for 3, 4, 5 and 6). As
    with DoReFa, the scale of the weight is lost, so batch norm has to follow the layer.

    Args:
        bits: 2 to 6, or None.
        signed, shape, of_weight, power_of_two: as in `Quantizer`; the grid is always signed.

    Raises:
        ValueError: other bits, or `signed` is False.

    References:
        Li, Dong and Wang, ICLR 2020, arXiv 1909.13144.
    """

    weights_only = True
    rule: Rule | None = staticmethod(_start)
    ewgs = None
    points: Tensor
    middles: Tensor

    def __init__(
        self,
        bits: int | None,
        *,
        signed: bool | None = True,
        shape: tuple[int, ...] = (),
        of_weight: bool = True,
        power_of_two: bool = False,
    ):
        if not signed:
            raise ValueError(f"signed is {signed!r}; APoT quantizes weights, around zero: use PACT or LSQ here")
        if isinstance(bits, int) and bits - 1 not in TERMS:
            raise ValueError(f"bits is {bits!r}; expected 2 to 6 for APoT: beyond, the levels' codes leave int8")
        super().__init__(bits, signed=True, shape=shape, of_weight=of_weight, power_of_two=power_of_two)
        for name, table in _tables(bits or 2).items():
            self.register_buffer(name, table, persistent=False)
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
        """Return APoT at 2 to 6 bits, else LSQ, for example for the 8 bits of the first and the last layer."""
        if bits is None or bits - 1 in TERMS:
            return self.like(bits=bits)
        return LSQ(bits, shape=self.shape, of_weight=self.of_weight, power_of_two=self.power_of_two)

    def quantized(self, x: Tensor) -> Tensor:
        clip = self.grid_bounds(x)[1]
        share = (self.normalised(x) / clip).clamp(-1, 1)
        v = share.detach()
        smooth = clip * (share + (self._units(v) / self.points[-1] - v))
        values = dequantize(self._units(v) + self.points[-1], *self.grid_bounds(x), self.levels).detach()
        return (values + (smooth - smooth.detach())).to(x.dtype)  # exactly the values that `dequantize` gives the codes

    def nearest(self, x: Tensor) -> Tensor:
        v = (self.normalised(x) / self.grid_bounds(x)[1]).clamp(-1, 1)
        return self._units(v) + self.points[-1]

    def normalised(self, w: Tensor) -> Tensor:
        """Return (w - mean) / deviation, fp32, with one mean and one deviation per range.

        Where all weights of a range are equal the result is w - mean, whose slope is 1. An all-zero padding row stays
        zero, and gets no gradient through the mean.
        """
        w = w.float()
        trained = w if self.padding is None else torch.where(self.nonzero(w), w, w.detach())
        centred = trained - self.reduce(trained, torch.mean)
        variance = self.reduce(centred.square(), torch.mean)
        differ = variance > ROUNDING**2 * self.reduce(w.detach().square(), torch.mean)
        normalised = centred / torch.where(differ, variance, 1.0).sqrt()
        return normalised if self.padding is None else torch.where(self.nonzero(w), normalised, w)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, table in _tables(self.bits or 2).items():  # `to_empty` moves tensors without their values
            setattr(self, name, table.to(self.clip.device))
        return self

    def _units(self, v: Tensor) -> Tensor:
        """Return the level nearest to `v`, which is in [-1, 1], as a signed whole number of units."""
        return torch.sign(v) * self.points[torch.bucketize(v.abs().contiguous(), self.middles)]
