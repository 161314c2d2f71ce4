"""Uniform weights of least squared error, as in Sung's group (Hwang and Sung 2014; Shin, Hwang and Sung 2016)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spequant.quantizers.base import Quantizer
from spequant.quantizers.ranges import FEW, ROUNDS, grouped

CLIPPED = 24  # steps tried at which the largest weight lies beyond the last level, down to a clip of rms / 2
NEAR = 9  # hundredths by which then to leave the best of them, up and down
READ = 2**18  # values that are rounded in the first sweep, over all its steps and ranges, unless that leaves fewer ...
LEAST_READ = {True: 256, False: 64}  # ... than these of each range, at up to 16 levels and at more
AT_ONCE = 2**20  # values that a sweep holds


class LeastSquares(Quantizer):
    """The step `d` whose grid lies nearest to the weight; nothing is trained or stored.

    Forward    M = 2^n - 1 levels (2 bits: ternary; 1 bit: +-d/2);  z = sign(w) min(round(|w| / d), (M - 1) / 2)
               the best d that a search finds (`nearest_step`), then d <- sum(w z) / sum(z^2), which only lowers the
               error, twice (from a single start, as usual, the iteration ends up to 9 % above the least error from 6
               bits on, after up to 190 rounds)
    Backward   dw_q/dw = 1; none through `d`

    zero: whether zero is a level. False: SAWB's levels, M = 2^n to 4 bits, z = +-1/2, +-3/2 ... +-(M - 1) / 2. Relative
    squared error on nine Gaussian samples: .083 against .147 at 2 bits (by SAWB's line .096), .019 against .024 at 3
    (.029).
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
    ):
        self.zero = zero
        super().__init__(bits, signed=signed, shape=shape, of_weight=of_weight)

    def level_count(self, bits: int | None = None) -> int:
        bits = self.bits if bits is None else bits
        assert bits is not None
        return 2**bits if bits == 1 or (bits <= 4 and not self.zero) else 2**bits - 1

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = (self.level_count() - 1) / 2
        with torch.no_grad():
            step = nearest_step(grouped(self, x.float()), half).reshape(self.shape)
            return -half * step, half * step

    def config(self) -> dict[str, object]:
        return {**super().config(), "zero": self.zero}


def nearest_step(rows: Tensor, half: float) -> Tensor:
    """Of each range the step whose grid, 2 `half` + 1 levels around zero, has the least squared error, or nearly; 0
    where all is zero.

    Tried are steps at which the largest |w| takes each code and half code of the grid's upper half (a finer grid has
    the levels of a coarser one among its own) and smaller ones, which clip it, down to a clip of rms / 2, below which
    more than half of the weight is lost. Then steps near the best, and its own least squares.

    rows: fp32 (ranges, weights of each). Returns fp32 (ranges, 1).
    """
    top = rows.abs().amax(1, keepdim=True)
    w = rows.abs() / torch.where(top > 0, top, 1.0)  # in [0, 1] whatever its scale: squares stay in fp32's range
    steps = _first_steps(w, half)
    sample, counts = _sample(w, max(READ // steps.numel(), LEAST_READ[half < 8]))
    step = _best(sample, counts, steps, half)
    step = _best(sample, counts, step * (1 + torch.arange(-NEAR, NEAR + 1, device=w.device) / 100), half)
    for _ in range(ROUNDS):
        z = _codes(w, step, half)
        fitted = (w * z).sum(1, keepdim=True) / z.square().sum(1, keepdim=True).clamp_min(1e-8)
        step = torch.where(fitted > 0, fitted, step)
    return step * top


def _first_steps(w: Tensor, half: float) -> Tensor:
    """(ranges, steps)."""
    spacing = 0.5 if w.shape[1] < FEW else 1.0
    lowest = half / 2 if half.is_integer() else half / 3  # without zero, levels lie on those of a third of the step
    codes = torch.arange(0, half - lowest, spacing, device=w.device)
    clip = (w.square().mean(1, keepdim=True).sqrt() / 2).clamp_min(1e-8)
    share = torch.arange(1, CLIPPED + 1, device=w.device) / CLIPPED
    return torch.cat([(1 / (half - codes)).expand(len(w), -1), clip**share / half], 1)


def _sample(w: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """(`number` values of each range, or a few more, how many weights each stands for); all where there are as few.

    Half of them are the largest of blocks of neighbours, so that no outlier is missed; the others are met at a stride
    that shares no divisor with the whole, so that every channel and column is met.
    """
    size = -(-2 * w.shape[1] // number)
    if size <= 2:
        return w, torch.ones_like(w[0])
    while math.gcd(size, w.shape[1]) > 1:
        size += 1
    some = w[:, ::size]
    blocks = F.pad(w, (0, some.shape[1] * size - w.shape[1])).view(*some.shape, size)
    ones = torch.ones_like(some[0])
    return torch.cat([some, blocks.amax(2)], 1), torch.cat([ones * (size - 1), ones])


def _best(w: Tensor, counts: Tensor, steps: Tensor, half: float) -> Tensor:
    """Of each row of `steps` the one with the least squared error; (ranges, 1)."""
    errors = []
    for some in steps.split(max(1, AT_ONCE // max(1, w.numel())), 1):
        s = some[:, :, None]
        lost = _codes(w[:, None], s, half).mul_(s).sub_(w[:, None])
        errors.append(lost.square_() @ counts)
    return steps.gather(1, torch.cat(errors, 1).argmin(1, keepdim=True))


def _codes(w: Tensor, step: Tensor, half: float) -> Tensor:
    """Codes of `w` >= 0 up to `half`: whole numbers, or halves of odd ones where `half` is one."""
    scaled = w / step  # our own tensor: changed in place, which halves the time
    scaled = scaled.round_() if half.is_integer() else scaled.floor_().add_(0.5)
    return scaled.clamp_max_(half)
