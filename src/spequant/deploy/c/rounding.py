"""From whole numbers to codes exactly as the twin rounds: where its steps are is looked up, whatever its scale.

The twin's code is a step function, monotone in the sum. With at most 16 codes the sums at which each begins are a
table, unless what follows is exact too and smaller. With more it is (sum * multiplier + offset) / 2^shift, downwards:
each step bounds the offset from both sides, so that one between these bounds, where there is one, gives the twin's code
for every sum that can occur. Where there is none, sums with another code are counted; they lie on a rounding tie of the
twin's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from spequant.deploy.integers import INT16_MAX

THRESHOLD_LEVELS = 16
"""Codes, up to which there is a table."""
MULTIPLIER = 30
"""Bits of a multiplier below its first."""
LARGEST_SHIFT = 52
LARGEST_SHIFT_OF_WORDS = 32
NEVER = 2**31 - 1
TRIED = (0, *(sign * 2**power for power in range(9) for sign in (1, -1)))
"""What is added to a multiplier until an offset fits: the twin's sums have the 24 bits of fp32, multipliers have 31."""

LISTED = 64
"""Pairs of codes, up to which exceptions are listed."""

TwinFunction = Callable[[np.ndarray], np.ndarray]
"""From sums, int64 (outputs, n), to codes before they are rounded, fp32."""


@dataclass(eq=False)
class Rounding:
    """Fields of `net_rounding`: steps int64 (outputs, 2^bits - 1), or multipliers, offsets and shifts (outputs,), and
    the codes low .. top, equal where the result is no code. unequal: sums with another code than the twin's."""

    bits: int
    steps: np.ndarray | None = None
    multipliers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    shifts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    low: int = 0
    top: int = 0
    even: bool = False
    unequal: int = 0

    @property
    def outputs(self) -> int:
        return len(self.multipliers if self.steps is None else self.steps)

    @property
    def size(self) -> int:
        """Bytes of its tables."""
        if self.steps is None:
            return 13 * self.outputs
        return self.steps.size * (2 if self.short else 4)

    @property
    def short(self) -> bool:
        """Whether int16 holds the steps."""
        return self.steps is not None and bool((np.abs(self.steps[self.steps != NEVER]) < INT16_MAX).all())


def thresholds(twin: TwinFunction, first: np.ndarray, last: np.ndarray, low: int, high: int) -> np.ndarray:
    """The smallest of the sums first .. last, int64 (outputs,), with each of the codes low + 1 .. high or a higher one;
    last + 1: there is none. int64 (outputs, codes), by halving."""
    codes = np.arange(low + 1, high + 1)[None, :]
    below = np.repeat(first[:, None], codes.shape[1], 1)
    above = np.repeat(last[:, None] + 1, codes.shape[1], 1)
    while (below < above).any():
        middle = (below + above) // 2
        reached = (np.rint(twin(middle)) >= codes) & (middle <= last[:, None])
        reached |= middle > last[:, None]
        below, above = np.where(reached | (below >= above), below, middle + 1), np.where(reached, middle, above)
    return below


def rounding(
    twin: TwinFunction, slope: np.ndarray, first: np.ndarray, last: np.ndarray, low: int, high: int, moved: np.ndarray
) -> Rounding:
    """Codes low .. high, stored less low.

    Args:
        twin: what the codes follow from.
        slope: of `twin`, fp64 (outputs,).
        first, last: of the sums that can occur.
        low, high: codes.
        moved: by how much these sums are larger than those that the kernel has, int64 (outputs,).
    """
    at = thresholds(twin, first, last, low, high)
    scaled = _multiplied(at, twin, slope, first, last, low, high, moved)
    if high - low >= THRESHOLD_LEVELS:
        return scaled
    bits = max(1, (high - low).bit_length())
    table = np.full((len(at), 2**bits - 1), NEVER, np.int64)
    table[:, : at.shape[1]] = np.where(at > last[:, None], NEVER, at - moved[:, None])
    looked_up = Rounding(bits, table)
    return looked_up if scaled.unequal or looked_up.size <= scaled.size else scaled


def _multiplied(
    at: np.ndarray,
    twin: TwinFunction,
    slope: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    low: int,
    high: int,
    moved: np.ndarray,
) -> Rounding:
    """By multiplier, offset and shift. at: of `thresholds`; all others: of `rounding`."""
    ends = np.arange(low + 1, high + 1)[None, :]
    exact = _even(at, ends, slope, np.asarray(twin(np.zeros((len(at), 1), np.int64)), np.float64)[:, 0], first, last)
    fitted = exact if not exact[3].any() else _fitted(at, ends, slope, first, last)
    multipliers, offsets, shifts, unequal = min(exact, fitted, key=lambda fit: int(fit[3].sum()))
    offsets = offsets + moved * multipliers
    even = fitted is exact or unequal is exact[3]
    return Rounding(8, None, multipliers, offsets, shifts, low, high, even, int(unequal.sum()))


def scaled(slope: np.ndarray, shift: np.ndarray, moved: np.ndarray) -> Rounding:
    """sum * slope + shift to the nearest whole number, int32: (outputs,) fp64. moved: as in `rounding`."""
    multipliers, shifts = _multipliers(slope, LARGEST_SHIFT_OF_WORDS)
    exact = np.ldexp(shift, shifts)
    offsets = np.rint(exact).astype(np.int64) + moved * multipliers + (np.int64(1) << (shifts - 1))
    return Rounding(8, None, multipliers, offsets, shifts)


def _multipliers(slope: np.ndarray, largest: int = LARGEST_SHIFT) -> tuple[np.ndarray, np.ndarray]:
    """(multiplier, shift) with slope = multiplier / 2^shift."""
    exponents = np.frexp(slope)[1]
    shifts = np.clip(MULTIPLIER + 1 - exponents, 1, largest).astype(np.int64)
    multipliers = np.rint(np.ldexp(slope, shifts)).astype(np.int64)
    over = np.abs(multipliers) >= 2**31
    return np.where(over, multipliers // 2, multipliers), np.where(over, shifts - 1, shifts)


def _even(
    at: np.ndarray, codes: np.ndarray, slope: np.ndarray, zero: np.ndarray, first: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, ...]:
    """As `_fitted`, with a tie to the even code: right for scales that are powers of two, where ties are frequent.
    zero: `twin` of the sum 0, fp64."""
    multipliers, shifts = _multipliers(slope)
    half = np.int64(1) << (shifts - 1)
    largest = np.ldexp(1.0, 61 - shifts)
    offsets = np.rint(np.ldexp(np.clip(zero, -largest, largest), shifts)).astype(np.int64) + half

    def code(sums: np.ndarray) -> np.ndarray:
        value = sums * multipliers[:, None] + offsets[:, None]
        shifted = value >> shifts[:, None]
        return shifted - (((value & ((np.int64(1) << shifts[:, None]) - 1)) == 0) & (shifted & 1 == 1))

    late = (code(at) < codes) & (at <= last[:, None])
    early = (code(at - 1) >= codes) & (at > first[:, None])
    return multipliers, offsets, shifts, (late | early).sum(1)


def _fitted(
    at: np.ndarray, codes: np.ndarray, slope: np.ndarray, first: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, ...]:
    """(multiplier, offset, shift, sums with another code) of each output, int64."""
    exact, shifts = _multipliers(slope)
    ends = codes << shifts[:, None]
    best = [exact, np.zeros_like(exact), shifts, np.full(len(exact), np.iinfo(np.int64).max)]
    for more in TRIED:
        multipliers = np.clip(exact + more, 0, NEVER)
        offsets = _offsets(at, ends, multipliers, first, last)
        begins = -(
            (offsets[:, None] - ends) // np.maximum(multipliers, 1)[:, None]
        )  # the first sum that reaches an end
        begins = np.where(multipliers[:, None] > 0, begins, np.where(offsets[:, None] >= ends, first[:, None], NEVER))
        begins = np.clip(begins, first[:, None], last[:, None] + 1)
        unequal = np.abs(begins - at).sum(1)
        better = unequal < best[3]
        new = multipliers, offsets, shifts, unequal
        best = [np.where(better, n, b) for n, b in zip(new, best, strict=True)]
        if not best[3].any():
            break
    return tuple(best)


def _offsets(
    at: np.ndarray, ends: np.ndarray, multipliers: np.ndarray, first: np.ndarray, last: np.ndarray
) -> np.ndarray:
    """In the middle between what the steps demand at least and at most."""
    far, m = np.int64(2**62), multipliers[:, None]
    least = np.where(at <= last[:, None], ends - at * m, -far).max(1)
    most = np.where(at > first[:, None], ends - (at - 1) * m - 1, far).min(1)
    least, most = np.where(least == -far, most, least), np.where(most == far, least, most)
    return least + (most - least) // 2


@dataclass(frozen=True)
class Sum:
    """Fields of `net_sum`. exceptions: uint8 (pairs, 3), stored codes that the arithmetic gets wrong, and the twin's.
    unequal: pairs of codes with another code than the twin's."""

    first: int
    second: int
    offset: int
    low: int
    top: int
    base: int
    shift: int
    exceptions: np.ndarray | None = None
    unequal: int = 0


def fixed_sum(units: tuple[float, float], lows: tuple[int, int], unit: float) -> Sum:
    """A sum of stored numbers of `units`, whose stored 0 is the code in `lows`, in units of `unit`: int32."""
    shift = int(MULTIPLIER - np.frexp(max(units) / unit)[1])
    shift = min(max(shift, 1), LARGEST_SHIFT)
    whole = [round(float(np.ldexp(np.float64(u) / unit, shift))) for u in units]
    offset = sum(w * low for w, low in zip(whole, lows, strict=True)) + (1 << (shift - 1))
    return Sum(whole[0], whole[1], offset, -(2**31), NEVER, 0, shift)


def code_sum(units: tuple[np.float32, np.float32], ends: tuple[tuple[int, int], ...]) -> Sum:
    """A sum of codes, each times its fp32 unit, rounded to a code. ends: (low, high) of both addends and the sum.

    Of all pairs of codes the twin's code is known; among multipliers that differ in their last bits those are taken
    with which the fewest pairs get another one.
    """
    (a_low, a_high), (b_low, b_high), (low, high) = ends
    a, b = np.arange(a_low, a_high + 1)[:, None], np.arange(b_low, b_high + 1)[None, :]
    twin = np.rint(a.astype(np.float32) * units[0] + b.astype(np.float32) * units[1]).clip(low, high)
    shift = int(np.clip(MULTIPLIER - np.frexp(max(units))[1], 1, LARGEST_SHIFT))
    whole = [round(float(np.ldexp(np.float64(u), shift))) for u in units]
    best = None
    for moved in ((0, 0), *((i, j) for i in TRIED[:11] for j in TRIED[:11])):
        first, second = (w + more for w, more in zip(whole, moved, strict=True))
        value = a * first + b * second + (1 << (shift - 1))
        codes = value >> shift
        codes -= ((value & ((1 << shift) - 1)) == 0) & (codes & 1 == 1)
        wrong = codes.clip(low, high) != twin
        if best is None or int(wrong.sum()) < best.unequal:
            offset = first * a_low + second * b_low + (1 << (shift - 1))
            pairs = np.argwhere(wrong)
            listed = np.column_stack([pairs, twin[wrong] - low]).astype(np.uint8)
            best = Sum(first, second, offset, low, high, low, shift, listed, len(pairs))
        if not best.unequal:
            return replace(best, exceptions=None)
    assert best is not None
    return replace(best, unequal=0) if best.unequal <= LISTED else replace(best, exceptions=None)
