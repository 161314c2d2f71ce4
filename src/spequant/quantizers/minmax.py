"""Ranges at the largest magnitude, or at a percentile of the magnitudes: for 8-bit layers, nothing is trained."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spequant.functional import LEAST_END
from spequant.quantizers import ranges
from spequant.quantizers.base import Quantizer, Rule
from spequant.quantizers.settings import QuantizerSettings


class MinMax(Quantizer):
    """Bounds at max|x|, or at a percentile of |x|.

    Forward    y = clip(x, -a, a), or clip(x, 0, a) if unsigned, rounded to the grid; a = max|x| or the percentile,
               from each weight at every forward, or stored by calibration for an activation
    Backward   dy/dx = 1 inside the bounds, else 0; the bounds are not trained

    Args:
        bits, signed, shape, of_weight, power_of_two: as in `Quantizer`.
        percentile: percentage of the magnitudes that are not clipped, above 0 and at most 100.

    Raises:
        ValueError: `percentile` is out of range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(QuantizerSettings):
        """The largest magnitude, or a percentile of it."""

        percentile: float = 100.0
        """of the magnitudes, at which the range ends; above 0"""

    def __init__(
        self,
        bits: int | None = 8,
        *,
        percentile: float = 100.0,
        signed: bool | None = None,
        shape: tuple[int, ...] = (),
        of_weight: bool = False,
        power_of_two: bool = False,
    ):
        super().__init__(bits, signed=signed, shape=shape, of_weight=of_weight, power_of_two=power_of_two)
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile is {percentile!r}; expected above 0 and at most 100, e.g. 99.9")
        self.percentile = percentile
        self.rule: Rule = ranges.percentile(percentile)
        self.stored = not of_weight
        self.calibrated = of_weight
        if self.stored:
            self.register_buffer("clip", torch.ones(shape))

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        clip = self.get_buffer("clip") if self.stored else self.rule(self, x.detach().float())
        return self.bounds_at(clip.clamp_min(LEAST_END))

    def set_clip(self, clip: Tensor) -> None:
        self.get_buffer("clip").copy_(clip)

    def grid_options(self) -> str:
        return f"percentile={float(self.percentile)}" if self.of_weight else ""  # an activation's range is stored

    def config(self) -> dict[str, object]:
        return {**super().config(), "percentile": self.percentile}
