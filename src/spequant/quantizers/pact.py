"""PACT: activations clipped at a trained value (Choi et al. 2018, arXiv 1805.06085)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spequant.functional import positive
from spequant.quantizers.base import Quantizer
from spequant.quantizers.settings import QuantizerSettings


class PACT(Quantizer):
    """One trained clipping value `a` per layer.

    Forward    y = clip(x, 0, a);  y_q = round(y (2^k - 1) / a) a / (2^k - 1)
    Backward   dy_q/dx = 1 on 0 <= x <= a, else 0;  dy_q/da = 1 on x >= a, else 0, summed over the tensor
    Loss       + decay / 2 * a^2   (the paper's L2 penalty on `a`)

    Signed tensors: clip(x, -a, a) on 2^k - 1 levels, and dy_q/da = -1 on x <= -a.

    Args:
        bits, signed, shape, of_weight, power_of_two: as in `Quantizer`.
        decay: factor of the L2 penalty on `a`, 0 or more; 0 leaves the penalty out.

    Raises:
        ValueError: `decay` is negative.

    References:
        Choi et al. 2018, arXiv 1805.06085.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(QuantizerSettings):
        """PACT: a trained clip."""

        decay: float = 2e-4
        """factor of the L2 penalty on the clips, without which they only grow; first and last layer and addends keep
        the default"""

    def __init__(
        self,
        bits: int | None,
        *,
        decay: float = 2e-4,
        signed: bool | None = None,
        shape: tuple[int, ...] = (),
        of_weight: bool = False,
        power_of_two: bool = False,
    ):
        super().__init__(bits, signed=signed, shape=shape, of_weight=of_weight, power_of_two=power_of_two)
        if not 0 <= decay < math.inf:
            raise ValueError(
                f"decay is {decay!r}; expected a finite number of 0 or more, the factor of the clip's L2 penalty"
            )
        self.decay = decay
        self.clip = self.new_range()

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bounds_at(positive(self.range_of(self.clip)))

    def set_clip(self, clip: Tensor) -> None:
        with torch.no_grad():
            self.clip.copy_(clip.reshape_as(self.clip))

    def decayed(self) -> tuple[Tensor, float] | None:
        return (self.clip, self.decay) if self.decay else None

    def config(self) -> dict[str, object]:
        return {**super().config(), "decay": self.decay}
