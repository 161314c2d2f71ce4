"""A quantizer with constant bounds: the form in which a packed file stores trained quantizers of every kind."""

import torch
from torch import Tensor

from spequant.quantizers.base import Quantizer


class Held(Quantizer):
    """Constant bounds and a free number of levels; nothing is trained, and nothing follows from the tensor.

    At another width b the grid has 2^b levels if `levels` is even, and 2^b - 1 if it is odd.

    Args:
        bits, signed, shape, of_weight, power_of_two: as in `Quantizer`.
        levels: number of levels of the home grid, 2 to 2^bits.

    Raises:
        ValueError: `levels` is out of that range.
    """

    vanishes = True

    def __init__(
        self,
        bits: int | None,
        *,
        levels: int,
        signed: bool | None = None,
        shape: tuple[int, ...] = (),
        of_weight: bool = False,
        power_of_two: bool = False,
    ):
        if bits is not None and not 2 <= levels <= 2**bits:
            raise ValueError(f"levels is {levels!r}; expected 2 to {2**bits}, what {bits} bits can number")
        self.held_levels = levels
        super().__init__(bits, signed=signed, shape=shape, of_weight=of_weight, power_of_two=power_of_two)
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("high", torch.ones(shape))

    def level_count(self, bits: int | None = None) -> int:
        if bits is None or bits == self.bits:
            return self.held_levels
        return max(2, 2**bits - self.held_levels % 2)

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.get_buffer("low"), self.get_buffer("high")

    def hold(self, low: Tensor, high: Tensor) -> None:
        """Set the bounds, tensors of `self.shape`."""
        self.get_buffer("low").copy_(low)
        self.get_buffer("high").copy_(high)
        self.calibrated = True

    def set_clip(self, clip: Tensor) -> None:
        self.hold(*self.bounds_at(clip))

    def grid_options(self) -> str:
        return f"levels={self.held_levels}"

    def config(self) -> dict[str, object]:
        return {**super().config(), "levels": self.held_levels}
