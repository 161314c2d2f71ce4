"""From a quantizer to the codes and steps of an integer program."""

import torch
from torch import Tensor

from spequant.deploy.packed import act_bounds, weight_codes
from spequant.deploy.program import Grid, Home
from spequant.functional import zero_point
from spequant.layers import QuantizedLayer
from spequant.quantizers.base import Quantizer


def act_grid(q: Quantizer) -> Grid:
    """The grid in use of an activation quantizer; ValueError where it is none, or zero is not on it."""
    low, high = act_bounds(q)
    home = Home(int(q.bits or 8), int(q.home_levels), float(low), float(high))
    try:
        return grid_of(home, int(q.levels))
    except ValueError as error:
        raise ValueError(f"{q.name}: {error}") from None


def grid_of(home: Home, levels: int) -> Grid:
    """`levels` codes between the bounds of `home`; ValueError where zero is none of them."""
    low, high, count = (torch.tensor(v, dtype=torch.float32) for v in (home.low, home.high, levels))
    zero = float(zero_point(low, high, count))
    if not zero.is_integer():
        raise ValueError(f"its grid of {levels} levels leaves zero out; it has no integer form")
    return Grid(float((high - low) / (levels - 1)), -int(zero), levels - 1 - int(zero), home)


def weight_grid(layer: QuantizedLayer) -> tuple[Tensor, Tensor]:
    """(codes, scale): int16 codes around zero, one output a row, and float64 scale a row; value = code * scale.

    A grid that leaves zero out (SAWB's -a, -a/3, a/3, a) gets odd codes of half its step (-3, -1, 1, 3). ValueError:
    codes that do not fit int8.
    """
    q = layer.weight_quantizer
    assert q is not None
    codes, low, high = weight_codes(layer)
    zero = zero_point(low, high, q.levels)
    halved = bool((zero != zero.round()).any())
    factor = 2 if halved else 1
    around = ((codes.float() - zero) * factor).round().to(torch.int16)
    if int(around.min()) < -128 or int(around.max()) > 127:
        raise ValueError(
            f"{q.name}: its {int(q.levels)} levels without zero need codes up to {int(around.max())}, which int8 "
            "cannot hold; use fewer bits or a grid with zero"
        )
    scale = (high.double() - low.double()) / (float(q.levels) - 1) / factor
    return around.cpu(), scale.reshape(-1).expand(len(around)).cpu()
