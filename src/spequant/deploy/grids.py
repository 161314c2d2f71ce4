"""Grids: whole numbers, what they stand for, and how a quantizer gives them.

Codes are whole numbers around zero: code c stands for c * step, so that zero is code 0 and needs no zero point.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spequant.functional import dequantize, on_power_of_two, zero_point
from spequant.layers import QuantizedLayer
from spequant.networks import TRANSPOSED
from spequant.quantizers.base import Quantizer

DIVERGED = "the training diverged. Go back to an earlier checkpoint, or train at a lower rate"

NEARLY = 2.0**-22
"""Share by which a step that is given may be off: some last bits of fp32."""


@dataclass(frozen=True)
class Home:
    """The quantizer that a grid comes from, as it was trained: `levels` values over [low, high], fp32 numbers.

    powers: number of levels in use, of a quantizer whose steps are powers of two at every width; None: of another.
    """

    bits: int
    levels: int
    low: float
    high: float
    powers: int | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The bounds at the width in use: low and high, or near them where steps are powers of two and wider."""
        if self.powers is None:
            return self.low, self.high
        numbers = (self.low, self.high, self.levels, self.powers)
        low, high = on_power_of_two(*(torch.tensor(v, dtype=torch.float32) for v in numbers))
        return float(low), float(high)


@dataclass(frozen=True)
class Grid:
    """Codes low .. high, at most 256 of them; code c stands for c * step. `step` is an fp32 number.

    home: the quantizer that it comes from. clamp: the values that clamps on the way to here leave, in float.
    """

    step: float
    low: int
    high: int
    home: Home | None = None
    clamp: tuple[float, float] = (-float("inf"), float("inf"))

    @property
    def signed(self) -> bool:
        """Of the quantizer: codes that a clamp leaves are stored as all others, next to which they may stand."""
        return self.low < 0 if self.home is None else self.home.low < 0

    @property
    def zero(self) -> int:
        """What engines store for code 0, as uint8: the number of codes of the quantizer below zero; of 8 bits 128, as
        of int8. Engines add it to a sum in fp32 before they round: at 128 a sum of few codes that is 1e-5 off the
        middle of two would get the other one, and such a sum may be that of many positions."""
        low, high = self.low, self.high
        if self.home is not None:
            low, high = (round(end / self.step) for end in self.home.ends)
        if low >= 0:
            return 0
        return 128 if low >= -128 and high <= 127 and high - low > 128 else -low

    @property
    def rate(self) -> float:
        """Codes per unit, the fp32 number that fake quantization multiplies by; 1 / step but for rounding."""
        if self.home is None:
            return float(1 / torch.tensor(self.step, dtype=torch.float32))
        low, high = (torch.tensor(v, dtype=torch.float32) for v in self.home.ends)
        return float(torch.round((high - low) / self.step) / (high - low))

    @property
    def bits(self) -> int:
        """Width that its codes need, before clamps."""
        low, high = (0.0, 0.0) if self.home is None else self.home.ends
        codes = self.high - self.low if self.home is None else round((high - low) / self.step)
        return max(1, codes.bit_length())

    def clamped(self, low: float, high: float) -> "Grid":
        """The grid of clamp(x, low, high): rounding and clamping to codes may change places, both being monotone."""
        clamp = (min(max(end, low), high) for end in self.clamp)
        first, last = self.nearest(low), self.nearest(high)
        return replace(self, low=first, high=last, clamp=tuple(clamp))

    def negated(self) -> "Grid":
        """The grid of -x."""
        home = None if self.home is None else replace(self.home, low=-self.home.high, high=-self.home.low)
        low, high = self.clamp
        return replace(self, low=-self.high, high=-self.low, home=home, clamp=(-high, -low))

    def lies_in(self, other: "Grid") -> bool:
        """Whether this is `other`, or what clamps leave of it: then rounding to `other` before changes nothing."""
        return other.clamped(*self.clamp) == self

    def nearest(self, value: float) -> int:
        """The code of `value`, which may be infinite."""
        code = torch.round(torch.tensor(value, dtype=torch.float32) / self.step)
        return int(code.clamp(self.low, self.high))


def as_float(x: Tensor, grid: Grid | None) -> Tensor:
    """The values of codes; float values as they are."""
    return x if grid is None else x.float() * torch.tensor(grid.step, dtype=torch.float32)


def stored(codes: Tensor, grid: Grid) -> np.ndarray:
    """Codes as an exported graph stores them: uint8."""
    return (codes + grid.zero).numpy().astype(np.uint8)


def act_grid(q: Quantizer) -> Grid:
    """The grid in use of an activation quantizer; ValueError where it is none, or zero is not on it."""
    low, high = act_bounds(q)
    home = Home(
        int(q.bits or 8), int(q.home_levels), float(low), float(high), int(q.levels) if q.power_of_two else None
    )
    try:
        return grid_of(home, int(q.levels))
    except ValueError as error:
        raise ValueError(f"{q.name}: {error}") from None


def grid_of(home: Home, levels: int) -> Grid:
    """`levels` codes between the bounds of `home`; ValueError where zero is none of them."""
    home = home if home.powers is None else replace(home, powers=levels)
    low, high, count = (torch.tensor(v, dtype=torch.float32) for v in (*home.ends, levels))
    zero = float(zero_point(low, high, count))
    if not zero.is_integer():
        raise ValueError(f"its grid of {levels} levels leaves zero out; it has no integer form")
    return Grid(float((high - low) / (levels - 1)), -int(zero), levels - 1 - int(zero), home)


def set_step(q: Quantizer, step: float) -> bool:
    """Give the grid in use of an activation quantizer this step, or nearly, in place; False: it stays as it is, since
    its range is not its own or it would have other codes."""
    old = act_grid(q)
    before = {name: value.clone() for name, value in q.state_dict().items() if isinstance(value, Tensor)}
    try:
        q.set_clip(torch.full(q.shape, step * old.high, device=q.home_levels.device))
        new = act_grid(q)
        if (new.low, new.high) == (old.low, old.high) and abs(new.step / step - 1) <= NEARLY:
            return True
    except (TypeError, ValueError):
        pass
    q.load_state_dict(before, strict=False)
    return False


def weight_grid(layer: QuantizedLayer) -> tuple[Tensor, Tensor]:
    """(codes, scale): int16 codes around zero, of the weight's shape, and float64 scales, one per output; value is code
    * scale. Transposed convolutions have their outputs in the second dimension.

    A grid that leaves zero out (SAWB's -a, -a/3, a/3, a) gets odd codes of half its step (-3, -1, 1, 3). ValueError:
    codes that do not fit int8.
    """
    q = layer.weight_quantizer
    assert q is not None
    codes, low, high = weight_codes(layer)
    zero = zero_point(low, high, q.levels)
    halved = bool((zero != zero.round()).any())
    factor = 2 if halved else 1
    around = (codes - zero).mul_(factor).round_().to(torch.int16)
    if int(around.min()) < -128 or int(around.max()) > 127:
        raise ValueError(
            f"{q.name}: its {int(q.levels)} levels without zero need codes up to {int(around.max())}, which int8 "
            "cannot hold; use fewer bits or a grid with zero"
        )
    scale = (high.double() - low.double()) / (float(q.levels) - 1) / factor
    wrapped: Any = layer.layer
    outputs = around.shape[1] * wrapped.groups if isinstance(wrapped, TRANSPOSED) else len(around)
    scale = scale.reshape(-1).cpu()
    return around.cpu(), scale.repeat_interleave(outputs // len(scale))


def weight_codes(layer: QuantizedLayer) -> tuple[Tensor, Tensor, Tensor]:
    """(codes uint8, low, high) of a layer's quantized weight; ValueError where its values are not finite or not equally
    spaced.

    low, high: of the quantizer's shape; one per row where a row of padding has its own, (0, 0)."""
    q = layer.weight_quantizer
    assert q is not None
    weight = layer.float_weight
    with torch.no_grad():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{q.name}: its weight holds NaN or Inf; expected finite values: {DIVERGED}")
        _check_finite(q, *q.span(weight))
        values = q(weight)
        codes, (low, high) = q.encode(weight), q.span(weight)
        if not torch.equal(dequantize(codes, low, high, q.levels).to(values.dtype), values):
            raise ValueError(f"{q.name}: the values of {type(q).__name__} are not equally spaced codes; leave it float")
    shape = torch.broadcast_shapes(low.shape, q.shape)
    return codes.to(torch.uint8), low.expand(shape).contiguous(), high.expand(shape).contiguous()


def _check_finite(q: Quantizer, low: Tensor, high: Tensor) -> None:
    """Refuse a range with an end that is NaN or infinite; ends of the quantizer's shape."""
    low, high = torch.broadcast_tensors(low, high)
    if (wrong := ~(torch.isfinite(low) & torch.isfinite(high))).any():
        low, high = low[wrong][0], high[wrong][0]
        raise ValueError(f"{q.name}: its range is {float(low):g} to {float(high):g}; expected finite ends: {DIVERGED}")


def act_bounds(q: Quantizer) -> tuple[Tensor, Tensor]:
    """(low, high) of an activation quantizer's home grid, 0-dim; ValueError where they are not finite or follow from
    each tensor, or its values are not those of an equally spaced grid."""
    with torch.no_grad():
        device = q.home_levels.device
        low, high = (b.reshape(()) for b in q.grid_bounds(torch.zeros(2, 1, device=device), q.home_levels))
        _check_finite(q, low, high)
        x = torch.linspace(-1.5, 1.5, 4001, device=device) * torch.maximum(high, -low)
        codes = q.encode(x)
        same = torch.equal(torch.stack(q.grid_bounds(x, q.home_levels)).reshape(2), torch.stack([low, high]))
        if not same or not torch.equal(dequantize(codes, *q.grid_bounds(x), q.levels), q(x)):
            raise ValueError(
                f"{q.name}: {type(q).__name__} is no grid of equally spaced values between stored bounds, and has no "
                "integer form"
            )
    return low, high
