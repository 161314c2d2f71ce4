"""Uniform weights of least squared error, as in Sung's group (Hwang and Sung 2014; Shin, Hwang and Sung 2016)."""

import torch
from torch import Tensor

from spequant.quantizers.base import Quantizer

# Step of least squared error for a unit Gaussian (after Max 1960); 3 levels: 2 x 0.612.
GAUSSIAN_STEP = {2: 1.596, 3: 1.224, 7: 0.651, 15: 0.354, 31: 0.194, 63: 0.106, 127: 0.0574, 255: 0.0310}
COARSE = [0.7 + 0.05 * i for i in range(31)]  # times the Gaussian's step: light to heavy tails
FINE = [1 + 0.004 * i for i in range(-9, 10)]  # times the best of those
ROUNDS = 2


class LeastSquares(Quantizer):
    """The step `d` whose grid lies nearest to the weight; nothing is trained or stored.

    Forward    M = 2^n - 1 levels (2 bits: ternary; 1 bit: +-d/2);  z = sign(w) min(round(|w| / d), (M - 1) / 2)
               the best d of two sweeps, then d <- sum(w z) / sum(z^2), which only lowers the error, twice
               (from a single start, as usual, the iteration ends up to 9 % above the least error from 6 bits on,
               after up to 190 rounds)
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
            scale = GAUSSIAN_STEP[levels] * self.reduce(w.square(), torch.mean).sqrt().clamp_min(1e-8)
            step = self._best(w, scale, COARSE, half)
            step = self._best(w, step, FINE, half)
            for _ in range(ROUNDS):
                z = _codes(w, step, half)
                fitted = self.reduce(w * z, torch.sum) / self.reduce(z * z, torch.sum).clamp_min(1e-8)
                step = torch.where(fitted > 0, fitted, step)
            return -half * step, half * step

    def _best(self, w: Tensor, step: Tensor, factors: list[float], half: float) -> Tensor:
        """`step` times that of `factors` at which the squared error is least."""
        steps = torch.stack([step * factor for factor in factors])
        errors = [self.reduce((w - s * _codes(w, s, half)).square(), torch.mean) for s in steps]
        return steps.gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]


def _codes(w: Tensor, step: Tensor, half: float) -> Tensor:
    """Signed codes of `w`: whole numbers up to `half`, or +-1/2."""
    return torch.sign(w) * half if half == 0.5 else torch.round(w / step).clamp(-half, half)
