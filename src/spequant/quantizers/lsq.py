"""LSQ: learned step size quantization (Esser et al., ICLR 2020, arXiv 1902.08153)."""

import math

import torch
from torch import Tensor

from spequant.functional import positive, scale_gradient
from spequant.quantizers.base import Quantizer


class LSQ(Quantizer):
    """One trained step `s` per tensor or channel, stored at the home precision.

    Forward    v_hat = s round(clip(v / s, -Qn, Qp));  Qn = 0, Qp = 2^b - 1 unsigned;
               Qn = 2^(b-1), Qp = 2^(b-1) - 1 signed (one bit: the two values +-s/2)
    Backward   dv_hat/dv = 1 inside, else 0;  dv_hat/ds = round(v/s) - v/s inside, -Qn below, Qp above,
               the gradient of `s` multiplied by g = 1 / sqrt(N Qp)
    Start      the step of least squared error; the paper's 2 E|v| / sqrt(Qp) is the calibration rule `paper_start`

    N is the number of weights that share a step, or of features per sample of an activation. At another precision the
    bounds -Qn s and Qp s stay, and the grid between them changes.

    Args:
        bits, signed, shape, of_weight, power_of_two: as in `Quantizer`.

    References:
        Esser et al., ICLR 2020, arXiv 1902.08153.
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
        super().__init__(bits, signed=signed, shape=shape, of_weight=of_weight, power_of_two=power_of_two)
        self.step = self.new_range()

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        if self.signed and bits == 1 and not self.of_weight:
            return super().level_count(bits)
        return 2**bits

    def leaves_zero_out(self) -> bool:
        return bool(self.signed) and self.level_count() == 2

    def codes(self) -> tuple[float, float]:
        """Return (Qn, Qp) at the home precision."""
        steps = self.level_count() - 1
        if not self.signed:
            return 0.0, float(steps)
        return (0.5, 0.5) if steps == 1 else ((steps + 1) / 2, (steps - 1) / 2)

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        qn, qp = self.codes()
        elements = x.numel() // max(1, self.step.numel()) if self.of_weight else x.numel() // max(1, len(x))
        step = scale_gradient(positive(self.range_of(self.step)), 1 / math.sqrt(max(1, elements) * max(1.0, qp)))
        return -qn * step, qp * step

    def bounds_at(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        qn, qp = self.codes()
        return -qn / qp * clip, clip

    def set_clip(self, clip: Tensor) -> None:
        with torch.no_grad():
            self.step.copy_((clip / self.codes()[1]).reshape_as(self.step))


def paper_start(quantizer: Quantizer, values: Tensor) -> Tensor:
    """Calibration rule: the clip Qp s of the paper's start s = 2 E|v| / sqrt(Qp).

    Raises:
        TypeError: `quantizer` is not an `LSQ`.
    """
    if not isinstance(quantizer, LSQ):
        raise TypeError(f"paper_start is LSQ's own rule; {type(quantizer).__name__} needs another, e.g. least_squares")
    qp = quantizer.codes()[1]
    return 2 * quantizer.reduce(values.abs(), torch.mean) * qp / math.sqrt(max(1.0, qp))
