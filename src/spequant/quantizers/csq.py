"""CSQ: centred symmetric quantization of weights (Faraz Tariq Mansoor et al., BMVC 2022)."""

import math

import torch
from torch import Tensor

from spequant.functional import positive, scale_gradient
from spequant.quantizers.base import Quantizer


class CSQ(Quantizer):
    """One trained step `s` a tensor or channel; as many levels below zero as above, none at zero.

    Forward    w_q = s (clip(floor(w / s), -2^(b-1), 2^(b-1) - 1) + 1/2): +-s/2, +-3s/2 ... +-(2^b - 1) s / 2
    Backward   LSQ's: dw_q/dw = 1 inside, else 0;  dw_q/ds = w_q / s - w / s inside, +-(2^b - 1) / 2 beyond,
               multiplied by 1 / sqrt(N Qp), Qp = (2^b - 1) / 2
    Start      the step of least squared error

    N: elements that share a step. At 2 bits the grid is that of SAWB's 4 levels. From 5 bits on 2^b - 1 levels, zero
    among them, as with SAWB: odd codes up to +-255 would not fit int8. The formula alone is known, its gradient ours.
    """

    weights_only = True
    inner = True

    def __init__(
        self, bits: int | None, *, signed: bool | None = True, shape: tuple[int, ...] = (), of_weight: bool = True
    ):
        if not signed:
            raise ValueError(f"signed is {signed!r}; CSQ's grid is symmetric around zero: use PACT or LSQ here")
        super().__init__(bits, signed=True, shape=shape, of_weight=of_weight)
        self.step = self.new_range()

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2**bits if bits <= 4 else 2**bits - 1

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = (self.level_count() - 1) / 2
        shared = max(1, x.numel() // max(1, self.step.numel()))
        step = scale_gradient(positive(self.range_of(self.step)), 1 / math.sqrt(shared * half))
        return -half * step, half * step

    def set_clip(self, clip: Tensor) -> None:
        with torch.no_grad():
            self.step.copy_((clip * 2 / (self.level_count() - 1)).reshape_as(self.step))
