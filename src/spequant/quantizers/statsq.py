"""StatsQ: weights scaled by their mean magnitude (Liu, Liu and Cheng 2023, arXiv 2302.02210)."""

import torch
from torch import Tensor

from spequant.quantizers.base import Quantizer
from spequant.quantizers.lsq import LSQ

MOST_BITS = 4


class StatsQ(Quantizer):
    """A clip that follows from the mean magnitude of the weight; nothing is trained or stored.

    Forward    s = 2 E|w|, computed from the weight at every forward; n = 2^(b-1)
               w_q = s (round(clip(w / s, -1, 1) n - 1/2) + 1/2) / n: +-s/2n, +-3s/2n ... +-(2^b - 1) s/2n
    Backward   dw_q/dw = 1 everywhere; none through `s`

    A step that is not trained moves only as the weights do, so that weights oscillate less between two levels. The
    formula is that of the authors' released code, which has one `s` per row of a linear layer: `prepare(...,
    per_channel=True)`. The grid has no zero.

    From 5 bits on, for example in the first and the last layer, `at` gives LSQ: 2 E|w| cuts off 11 % of Gaussian
    weights, which at more levels costs more than steps do.

    Args:
        bits: 1 to 4, or None.
        signed, shape, of_weight, power_of_two: as in `Quantizer`; the grid is always signed.

    Raises:
        ValueError: more bits, or `signed` is False.

    References:
        Liu, Liu and Cheng 2023, Oscillation-free Quantization for Low-bit Vision Transformers, arXiv 2302.02210.
    """

    stored = False
    weights_only = True
    vanishes = True
    saturate = False

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
            raise ValueError(f"signed is {signed!r}; StatsQ's grid is symmetric around zero: use PACT or LSQ here")
        if isinstance(bits, int) and bits > MOST_BITS:
            raise ValueError(f"bits is {bits!r}; expected 1 to {MOST_BITS} for StatsQ: with more use LSQ or SAWB")
        super().__init__(bits, signed=True, shape=shape, of_weight=of_weight, power_of_two=power_of_two)

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2**bits

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            clip = 2 * self.reduce(x.detach().float().abs(), torch.mean) * (1 - 1 / self.level_count())
            return -clip, clip

    def at(self, bits: int | None) -> Quantizer:
        """Return StatsQ at 1 to 4 bits, else LSQ, for example for the 8 bits of the first and the last layer."""
        if bits is None or bits <= MOST_BITS:
            return self.like(bits=bits)
        return LSQ(bits, shape=self.shape, of_weight=self.of_weight, power_of_two=self.power_of_two)
