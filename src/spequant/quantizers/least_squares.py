"""Uniform weights of least squared error, as in Sung's group (Hwang and Sung 2014; Shin, Hwang and Sung 2016)."""

import torch
from torch import Tensor

from spequant.quantizers.base import Quantizer

# Step of least squared error for a unit Gaussian (after Max 1960); 3 levels: 2 x 0.612.
GAUSSIAN_STEP = {2: 1.596, 3: 1.224, 7: 0.651, 15: 0.354, 31: 0.194, 63: 0.106, 127: 0.0574, 255: 0.0310}
ROUNDS = 30


class LeastSquares(Quantizer):
    """The step `d` whose grid lies nearest to the weight; nothing is trained or stored.

    Forward    M = 2^n - 1 levels (2 bits: ternary; 1 bit: +-d/2);  z = sign(w) min(round(|w| / d), (M - 1) / 2)
               d <- sum(w z) / sum(z^2), 30 rounds from the Gaussian's step (it stands before, see the tests)
    Backward   dw_q/dw = 1; none through `d`
    """

    stored = False
    saturate = False

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2 if bits == 1 else 2**bits - 1

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.level_count()
        half = (levels - 1) / 2
        with torch.no_grad():
            w = x.float()
            step = GAUSSIAN_STEP[levels] * self.reduce(w.square(), torch.mean).sqrt().clamp_min(1e-8)
            for _ in range(ROUNDS):
                z = torch.sign(w) * half if levels == 2 else torch.round(w / step).clamp(-half, half)
                fitted = self.reduce(w * z, torch.sum) / self.reduce(z * z, torch.sum).clamp_min(1e-8)
                step = torch.where(fitted > 0, fitted, step)
            return -half * step, half * step
