"""DoReFa-Net's weights and activations (Zhou et al. 2016, arXiv 1606.06160)."""

import torch
from torch import Tensor

from spequant.functional import fake_quantize, quantize
from spequant.quantizers.base import Quantizer


class DoReFa(Quantizer):
    """Fixed bounds for weights and activations; weights pass through tanh first.

    Weights      w_q = 2 round_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1
    Activations  a_q = round_k(clip(a, 0, 1)); signed: over [-1, 1] on 2^k - 1 levels
    Backward     straight-through round_k(x) = round((2^k - 1) x) / (2^k - 1); through tanh and its maximum, as written

    The quantized weights fill [-1, 1] whatever the scale of the float weights, so batch norm has to follow the layer.

    Args:
        bits, signed, shape, of_weight: as in `Quantizer`.
        power_of_two: as there: activations then have steps of 2^-k, so that the largest is 1 - 2^-k.

    References:
        Zhou et al. 2016, arXiv 1606.06160.
    """

    stored = False

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2**bits if self.of_weight else super().level_count(bits)

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bounds_at(torch.ones(self.shape, device=x.device))

    def quantized(self, x: Tensor) -> Tensor:
        if not self.of_weight:
            return fake_quantize(x, *self.span(x), self.levels, ewgs=self.ewgs or 0.0)
        return fake_quantize(self.squashed(x), *self.span(x), self.levels, ewgs=self.ewgs or 0.0).to(x.dtype)

    def nearest(self, x: Tensor) -> Tensor:
        return quantize(self.squashed(x) if self.of_weight else x, *self.span(x), self.levels)

    def squashed(self, w: Tensor) -> Tensor:
        """Return tanh(w) / max|tanh(w)|, in [-1, 1], fp32; zeros stay zeros."""
        squashed = torch.tanh(w.float())
        largest = self.reduce(squashed.abs(), torch.amax)
        return squashed / torch.where(largest > 0, largest, 1.0)
