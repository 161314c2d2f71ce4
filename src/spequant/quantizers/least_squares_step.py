"""Uniform weights of least squared error, as in the work of Sung's group (Hwang and Sung 2014; Shin et al. 2016)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spequant.functional import nearest_power, power_above
from spequant.functional.graphs import one_node
from spequant.quantizers.base import Quantizer
from spequant.quantizers.ranges import FEW_VALUES, FIT_ROUNDS, grouped

FEW_TO_SEARCH = 2**14
"""Values of a weight up to which a search, of .3 to 1 ms, is not worth kernels of its own, of four seconds each."""
CLIPPING_STEPS = 24
"""Steps to try at which the largest weight lies beyond the last level, down to a clip of rms / 2."""
FINE_STEPS = 9
"""Steps to try on each side of the best one, 1 % of it apart."""
SAMPLED_VALUES = 2**18
"""Values to round in the first sweep, over all its steps and ranges ..."""
LEAST_SAMPLE = {True: 256, False: 64}
"""... but at least so many per range: 256 with up to 16 levels, 64 with more."""
POWERS = 16
"""Powers of two to try, from the least that clips nothing downwards."""
CHUNK_VALUES = 2**20
"""Values that a sweep holds in memory at once."""


class LeastSquares(Quantizer):
    """The step `d` whose grid lies nearest to the weight; nothing is trained or stored.

    Forward    M = 2^n - 1 levels (2 bits: ternary; 1 bit: +-d/2);  z = sign(w) min(round(|w| / d), (M - 1) / 2)
               d is the best step that a search finds (`nearest_step`); then d <- sum(w z) / sum(z^2), twice, which
               never raises the error
               with `power_of_two` the power of two of least error
    Backward   dw_q/dw = 1; none through `d`

    The usual iteration from a single start needs up to 190 rounds, and from 6 bits on it ends up to 9 % above the least
    error.

    Args:
        bits, signed, shape, of_weight, power_of_two: as in `Quantizer`.
        zero: whether zero is a level. False gives SAWB's levels, M = 2^n at 1 to 4 bits, z = +-1/2, +-3/2 ...
            +-(M - 1) / 2. Relative squared error on nine Gaussian samples without and with zero: .083 and .147 at
            2 bits (by SAWB's formula .096), .019 and .024 at 3 bits (.029).

    References:
        Hwang and Sung, SiPS 2014. Shin, Hwang and Sung, ICASSP 2016.
    """

    stored = False
    weights_only = True
    saturate = False
    vanishes = True

    def __init__(
        self,
        bits: int | None,
        *,
        zero: bool = True,
        signed: bool | None = None,
        shape: tuple[int, ...] = (),
        of_weight: bool = True,
        power_of_two: bool = False,
    ):
        self.zero = zero
        super().__init__(bits, signed=signed, shape=shape, of_weight=of_weight, power_of_two=power_of_two)

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2**bits if bits == 1 or (bits <= 4 and not self.zero) else 2**bits - 1

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = (self.level_count() - 1) / 2
        with torch.no_grad():
            search = nearest_power_step if self.power_of_two else nearest_step
            step = search(grouped(x.float(), self.shape), half).reshape(self.shape)
            return -half * step, half * step

    def grid_options(self) -> str:
        return f"zero={bool(self.zero)}"

    def config(self) -> dict[str, object]:
        return {**super().config(), "zero": self.zero}


_searched = one_node(
    "(Tensor rows, float half) -> Tensor",
    like=lambda rows, half: rows.new_empty(len(rows), 1),
    called_up_to=FEW_TO_SEARCH,
)


@_searched
def nearest_step(rows: Tensor, half: float) -> Tensor:
    """Search, for each range, the step whose grid has the least squared error, or nearly.

    The first sweep tries steps that put the largest |w| on each code, for few values also on each half code, of the
    upper half of the grid; the lower half adds nothing, because a finer grid contains the levels of a coarser one. It
    also tries smaller steps, which clip the largest |w|, down to a clip of rms / 2, below which more than half of the
    weight is lost. The second sweep tries steps near the best one. Least squares then fits the step to its codes.

    Args:
        rows: weights, fp32, (ranges, weights per range).
        half: largest code; the grid has 2 `half` + 1 levels around zero.

    Returns:
        Steps, fp32, (ranges, 1); 0 where the whole range is zero.
    """
    top = rows.abs().amax(1, keepdim=True)
    w = rows.abs() / torch.where(top > 0, top, 1.0)  # scaled to [0, 1], so that squares stay in the range of fp32
    steps = _first_steps(w, half)
    sample, counts = _sample(w, max(SAMPLED_VALUES // steps.numel(), LEAST_SAMPLE[half < 8]))
    step = _best(sample, counts, steps, half)
    step = _best(sample, counts, step * (1 + torch.arange(-FINE_STEPS, FINE_STEPS + 1, device=w.device) / 100), half)
    for _ in range(FIT_ROUNDS):
        z = _codes(w, step, half)
        fitted = (w * z).sum(1, keepdim=True) / z.square().sum(1, keepdim=True).clamp_min(1e-8)
        step = torch.where(fitted > 0, fitted, step)
    return step * top


@_searched
def nearest_power_step(rows: Tensor, half: float) -> Tensor:
    """Return what `nearest_step` does among powers of two: of `POWERS` of them, the one of least squared error."""
    top = power_above(rows.abs().amax(1, keepdim=True))
    w = rows.abs() / torch.where(top > 0, top, 1.0)
    first = power_above(w.amax(1, keepdim=True) / half)
    steps = first * 2.0 ** -torch.arange(POWERS, device=w.device)
    return nearest_power(_best(w, torch.ones_like(w[0]), steps, half)) * top


def _first_steps(w: Tensor, half: float) -> Tensor:
    """Return the steps of the first sweep, (ranges, steps)."""
    spacing = 0.5 if w.shape[1] < FEW_VALUES else 1.0
    lowest = half / 2 if half.is_integer() else half / 3  # a grid without zero is contained in one of a third the step
    codes = torch.arange(0, half - lowest, spacing, device=w.device)
    clip = (w.square().mean(1, keepdim=True).sqrt() / 2).clamp_min(1e-8)
    share = torch.arange(1, CLIPPING_STEPS + 1, device=w.device) / CLIPPING_STEPS
    return torch.cat([(1 / (half - codes)).expand(len(w), -1), clip**share / half], 1)


def _sample(w: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return (`number` values of each range, or a few more; how many weights each of them stands for).

    If a range has no more values than that, all are returned. Half of the sample are the largest values of blocks of
    neighbours, so that it misses no outlier. The others are `size` apart, a stride without a common divisor with the
    row, so that they fall on every channel and column.
    """
    size = -(-2 * w.shape[1] // number)
    if size <= 2:
        return w, torch.ones_like(w[0])
    while math.gcd(size, w.shape[1]) > 1:
        size += 1
    strided = w[:, ::size]
    blocks = F.pad(w, (0, strided.shape[1] * size - w.shape[1])).view(*strided.shape, size)
    ones = torch.ones_like(strided[0])
    return torch.cat([strided, blocks.amax(2)], 1), torch.cat([ones * (size - 1), ones])


def _best(w: Tensor, counts: Tensor, steps: Tensor, half: float) -> Tensor:
    """Return the step of least squared error of each row of `steps`, (ranges, 1)."""
    errors = []
    for chunk in steps.split(max(1, CHUNK_VALUES // max(1, w.numel())), 1):
        s = chunk[:, :, None]
        rounding = _codes(w[:, None], s, half).mul_(s).sub_(w[:, None])
        errors.append(rounding.square_().mul_(counts).sum(-1))  # autocast would make a matrix product bf16
    return steps.gather(1, torch.cat(errors, 1).argmin(1, keepdim=True))


def _codes(w: Tensor, step: Tensor, half: float) -> Tensor:
    """Return the codes of `w` >= 0, up to `half`: whole numbers, or n + 1/2 if `half` is of that form."""
    scaled = w / step  # a new tensor: changing it in place halves the time
    scaled = scaled.round_() if half.is_integer() else scaled.floor_().add_(0.5)
    return scaled.clamp_max_(half)
