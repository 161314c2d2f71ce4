"""LSQ+: a trained step and a trained offset (Bhalgat et al., CVPR workshops 2020, arXiv 2004.09576)."""

import math

import torch
from torch import Tensor

from spequant.functional import fake_quantize, positive, scale_gradient
from spequant.quantizers.base import Quantizer, Rule
from spequant.quantizers.ranges import best_zero, grouped


class LSQPlus(Quantizer):
    """One trained step `s` and one trained offset `beta` per activation.

    For activations that reach less far below zero than above: those of SiLU, GELU and linear bottlenecks.

    Forward    x_hat = s round(clip((x - low) / s, 0, p)) + low,  p = 2^b - 1
               low = -z s,  z = round(clip(-beta / s, 0, p))
    Backward   dx_hat/dx = 1 inside, else 0;  dx_hat/dbeta = 0 inside, 1 below and above
               dx_hat/ds = round(x/s) - x/s inside, 0 below, p above
               the gradients of both multiplied by 1 / sqrt(N p)
    Start      the zero point z of least squared error, then the s that the calibration rule chooses

    The whole number z is this library's choice: with the paper's low = beta, zero (padding, pruned channels) would lie
    between two levels. The gradient passes straight through the rounding and clipping of z. N is the number of features
    per sample. At another precision the bounds -z s and (p - z) s stay: the grid has k times as many steps, k z of them
    below zero. For unsigned tensors low = 0 and `beta` is not trained, as in LSQ.

    Args:
        bits, signed, shape, power_of_two: as in `Quantizer`.
        of_weight: False; True is an error.

    Raises:
        ValueError: `of_weight` is True.

    References:
        Bhalgat et al., CVPR workshops 2020, arXiv 2004.09576.
    """

    inner = True

    def __init__(
        self,
        bits: int | None,
        *,
        signed: bool | None = None,
        shape: tuple[int, ...] = (),
        of_weight: bool = False,
        power_of_two: bool = False,
    ):
        if of_weight:
            raise ValueError(
                "LSQPlus was given for a weight (of_weight is True); it is for activations: use LSQ for weights, as "
                "its paper does"
            )
        super().__init__(bits, signed=signed, shape=shape, of_weight=of_weight, power_of_two=power_of_two)
        self.step = self.new_range()
        self.offset = self.new_range(-float(self.steps // 2)).requires_grad_(signed is not False)
        self.offset_unused = signed is False  # then the offset needs no gradient

    @property
    def steps(self) -> int:
        """p, the number of steps of the home grid."""
        return 2 ** (self.bits or 1) - 1

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2**bits

    def set_signed(self, signed: bool) -> None:
        super().set_signed(signed)
        if not signed and self.offset.requires_grad:  # DDP refuses parameters that never get a gradient
            self.offset.requires_grad_(False)
            self.offset_unused = True
        elif signed and self.offset_unused:  # an offset that the user froze stays frozen
            self.offset.requires_grad_(True)
            self.offset_unused = False

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factor = 1 / math.sqrt(max(1, x.numel() // max(1, len(x))) * self.steps)
        step = positive(self.range_of(self.step))
        width = scale_gradient(step, factor) * self.steps
        if not self.signed:
            return torch.zeros_like(width), width
        offset = scale_gradient(self.range_of(self.offset), factor)
        low = fake_quantize(offset, -width.detach(), torch.zeros_like(step), self.home_levels, saturate=False)
        return low, low + width

    def bounds_at(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds whose end farther from zero has the magnitude `clip`; the zero point stays."""
        if not self.signed:
            return torch.zeros_like(clip), clip
        zero = self.zero()
        step = clip / torch.maximum(zero, self.steps - zero)
        return -zero * step, (self.steps - zero) * step

    def set_clip(self, clip: Tensor) -> None:
        with torch.no_grad():
            low, high = self.bounds_at(clip)
            self.step.copy_(((high - low) / self.steps).reshape_as(self.step))
            self.offset.copy_(low.reshape_as(self.offset))

    def zero(self) -> Tensor:
        """Return z, the code of zero on the home grid."""
        zero = torch.round(-self.offset.detach() / positive(self.step.detach())).clamp(0, self.steps)
        return self.range_of(zero)

    def fit(self, values: Tensor, rule: Rule, ends: Tensor | None = None) -> None:
        if self.signed and self.bits is not None:
            rows = grouped(values.detach().float(), self.shape)
            zeros = torch.tensor([best_zero(row, self.level_count()) for row in rows], device=values.device)
            with torch.no_grad():
                self.step.fill_(1.0)
                self.offset.copy_(-zeros.reshape_as(self.offset))
        super().fit(values, rule, ends)
