"""CSQ: centred symmetric quantization of weights (Faraz Tariq Mansoor et al., BMVC 2022)."""

import math

import torch
from torch import Tensor

from spequant.functional import positive, scale_gradient
from spequant.quantizers.base import Quantizer


class CSQ(Quantizer):
    """Symmetric weights without a level at zero, with one trained step `s` per tensor or channel.

    Forward    w_q = s (clip(floor(w / s), -2^(b-1), 2^(b-1) - 1) + 1/2): +-s/2, +-3s/2 ... +-(2^b - 1) s / 2
    Backward   LSQ's: dw_q/dw = 1 inside, else 0;  dw_q/ds = w_q / s - w / s inside, +-(2^b - 1) / 2 beyond,
               multiplied by 1 / sqrt(N Qp), Qp = (2^b - 1) / 2
    Start      the step of least squared error

    N is the number of elements that share a step. The 2-bit grid equals SAWB's. From 5 bits on the grid has 2^b - 1
    levels including zero, as with SAWB, because odd codes up to +-255 do not fit int8. We only know the formula of the
    forward; the gradient is this library's choice.

    Args:
        bits, signed, shape, of_weight, power_of_two: as in `Quantizer`; the grid is always signed.

    Raises:
        ValueError: `signed` is False.

    References:
        Faraz Tariq Mansoor et al., BMVC 2022.
    """

    weights_only = True
    inner = True

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
            raise ValueError(f"signed is {signed!r}; CSQ's grid is symmetric around zero: use PACT or LSQ here")
        super().__init__(bits, signed=True, shape=shape, of_weight=of_weight, power_of_two=power_of_two)
        self.step = self.new_range()

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2**bits if bits <= 4 else 2**bits - 1

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = (self.level_count() - 1) / 2
        elements = max(1, x.numel() // max(1, self.step.numel()))
        step = scale_gradient(positive(self.range_of(self.step)), 1 / math.sqrt(elements * half))
        return -half * step, half * step

    def set_clip(self, clip: Tensor) -> None:
        with torch.no_grad():
            self.step.copy_((clip * 2 / (self.level_count() - 1)).reshape_as(self.step))
