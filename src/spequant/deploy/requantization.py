"""Sums of int8 products to codes, in engines that round in different ways: factors and biases with which all of them
give the codes of the twin, for every sum that can occur.

An engine's code of a sum is a step function, monotone in the sum. The twin's and an engine's are equal where they step
between the same two sums; so only these are looked at, at most 255 of each output channel.

- XNNPACK: round(fp32(sum) * fp32(M)), ties to the even code, as the twin.
- TensorFlow Lite Micro: M = m * 2^-n with m in [0.5, 1) of 31 bits; the product with m is rounded to a whole number and
  that, divided by 2^n, once more. The first rounding moves every step towards zero by 1 / (2 m) of a unit of the sum.

Few codes leave steps room: their weights are multiplied up (`integers.int8_form`), so that sums lie many units apart,
and M and the bias, both free, are put where both ways of rounding step between the same sums. 255 steps leave little,
unless the bias of the network itself is chosen for it, of those that integers have (`bias_choice.py`). At 8 bits there
is no room: XNNPACK's steps stay right, and what the other gives otherwise is counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from spequant.deploy.grids import Grid
from spequant.deploy.integers import INT32_MAX, Integers
from spequant.deploy.operations import Weighted

TFLITE_ENGINES = ("litert", "tflm")
WINDOW = 4
"""Sums on either side of a step of the twin's among which an engine's is looked for."""
FARTHEST = 2.0**40
"""More than any sum."""
CANDIDATES = 33
"""Biases that are looked at, at most."""
NEAR_MIDDLE = 1e-3
"""Codes: a sum that is farther from the middle between two has the same code in all engines."""
LAST_BITS = 24
"""Of an fp32 number: scales that are tried for a sum."""
APART = 2e-7
"""Of M: two fp32 numbers are told apart by it."""


def litert_codes(sums: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """What XNNPACK makes of `sums`, whole numbers; factor: fp32."""
    return np.rint(sums.astype(np.float32) * factor)


def tflm_codes(sums: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """What TensorFlow Lite Micro makes of them; factor: fp64."""
    mantissa, exponent = np.frexp(factor)
    mantissa = np.rint(mantissa * 2.0**31).astype(np.int64)
    exponent = np.where(mantissa == 2**31, exponent + 1, exponent)
    mantissa = np.where(mantissa == 2**31, 2**30, mantissa)
    left, right = np.maximum(exponent, 0).astype(np.int64), np.maximum(-exponent, 0).astype(np.int64)
    product = (sums.astype(np.int64) << left) * mantissa
    high = np.where(product >= 0, (product + 2**30) >> 31, -((-product + 2**30 - 1) >> 31))
    right = np.minimum(right, 62)
    return np.sign(high) * ((np.abs(high) + ((np.int64(1) << right) >> 1)) >> right)


@dataclass(frozen=True)
class Steps:
    """Where the twin's code grows, for each output and each code k of low + 1 .. high: (outputs, codes).

    Sums are unit * j + bias with j of first .. last; at `at` the code is k for the first time, last + 1: it never is.
    unit, bias, first, last: int64 (outputs, 1); factor: codes per unit of a sum, fp64 (outputs, 1).
    """

    codes: np.ndarray
    at: np.ndarray
    unit: np.ndarray
    bias: np.ndarray
    first: np.ndarray
    last: np.ndarray
    factor: np.ndarray

    def times(self, factor: int, divisor: int = 1) -> "Steps":
        """Of products `factor` / `divisor` times as large; the bias is then only near to its own."""
        bias = np.rint(self.bias * factor / divisor).astype(np.int64)
        return replace(self, unit=self.unit * factor // divisor, bias=bias, factor=self.factor / factor * divisor)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """(largest sum with a lower code, smallest sum with the code or a higher one); infinite where there is none."""
        below = np.where(self.at <= self.first, -np.inf, self.unit * (self.at - 1) + self.bias)
        return below, np.where(self.at > self.last, np.inf, self.unit * self.at + self.bias)

    def unequal(self, moved: np.ndarray, factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """How many sums of each output have another code, added up by how far it is off: (outputs,) by engine.
        moved: what is added to the bias; factors: of each engine; both (outputs,)."""
        j = self.at[..., None] + np.arange(-WINDOW, WINDOW)
        there = (j >= self.first[..., None]) & (j <= self.last[..., None])
        sums = self.unit[..., None] * j + self.bias[..., None] + moved[:, None, None]
        expected, codes = j >= self.at[..., None], self.codes[None, :, None]
        counts = {}
        for name, function in (("litert", litert_codes), ("tflm", tflm_codes)):
            got = function(sums, factors[name][:, None, None]) >= codes
            counts[name] = ((got != expected) & there).sum((1, 2))
        return counts


def rounding_steps(form: Integers, factor: Tensor, source: tuple[int, int], low: int, high: int) -> Steps:
    """Of a layer of `form` on codes of source[0] .. source[1]. factor: fp32 (outputs,), codes per unit of the sums."""
    weight = form.weight.flatten(1).numpy().astype(np.int64)
    bias, scale = form.bias.numpy().astype(np.int64)[:, None], factor.numpy().astype(np.float32)[:, None]
    ends = min(source[0], 0), max(source[1], 0)  # 0: padding
    each = np.stack([weight * end for end in ends])
    unit = np.maximum(np.gcd.reduce(weight, axis=1), 1)[:, None]
    first, last = each.min(0).sum(1)[:, None] // unit, each.max(0).sum(1)[:, None] // unit
    codes = np.arange(low + 1, high + 1)
    middle = np.clip((codes - 0.5) / np.maximum(scale.astype(np.float64), 2.0**-60), -FARTHEST, FARTHEST)
    near = np.ceil((middle - bias) / unit).astype(np.int64)
    j = near[..., None] + np.arange(-2, 3)
    reached = litert_codes(unit[..., None] * j + bias[..., None], scale[..., None]) >= codes[None, :, None]
    at = np.clip(near + 3 - reached.sum(-1), first, last + 1)
    return Steps(codes, at, unit, bias, first, last, scale.astype(np.float64))


def spread_of(op: Weighted) -> int:
    """How many times as large the codes that `op` reads may be stored, by one QUANTIZE, and its sums are an int32."""
    return min(255 // max(1, op.source.high - op.source.low), 127, INT32_MAX // max(1, op.integers.bound))


def factor_of(op: Weighted) -> Tensor:
    """Output codes of `op` per unit of its sums, as the twin has it."""
    assert op.grid is not None
    return op.step * op.integers.scale / op.grid.step


def twin_steps(op: Weighted) -> Steps:
    """Those of `op`, with codes at their own size."""
    assert op.grid is not None
    return rounding_steps(op.integers, factor_of(op), (op.source.low, op.source.high), op.grid.low, op.grid.high)


@dataclass(frozen=True)
class Requantization:
    """scale: fp32 (outputs,), of weights; bias: int32 (outputs,). unequal: {engine: sums with another code}."""

    scale: np.ndarray
    bias: np.ndarray
    unequal: dict[str, int]


def agreement(s: Steps) -> np.ndarray:
    """Whether there is a factor with which all engines step where the twin does: bool (outputs,)."""
    factor, moved = _placed(s)
    counts = s.unequal(moved, _factors(factor.astype(np.float32), np.float32(1), np.float32(1)))
    return ~np.any(list(counts.values()), axis=0)


REQUANTIZED: WeakKeyDictionary[Weighted, dict[tuple[float, ...], Requantization]] = WeakKeyDictionary()
"""What `requantized` gave: an export writes each layer three times, in the file and in two graphs that are compared."""


def requantized(
    op: Weighted, unit_in: np.float32, unit_out: np.float32, times: int = 1, divisor: int = 1
) -> Requantization:
    """`requantization` of the steps of `op`, its sums `times` / `divisor` as large."""
    key = float(unit_in), float(unit_out), times, divisor
    cached = REQUANTIZED.setdefault(op, {})
    if key not in cached:
        cached[key] = requantization(twin_steps(op).times(times, divisor), unit_in, unit_out)
    return cached[key]


def unsearched(
    op: Weighted, unit_in: np.float32, unit_out: np.float32, times: int = 1, divisor: int = 1
) -> Requantization:
    """The twin's own scale and bias, where no choice is to be made: no sum is looked at, and none counts as unequal."""
    factor = factor_of(op).numpy() / np.float32(times) * np.float32(divisor)
    scale = (factor.astype(np.float64) * (np.float64(unit_out) / np.float64(unit_in))).astype(np.float32)
    bias = np.rint(op.integers.bias.numpy().astype(np.int64) * times / divisor).astype(np.int32)
    return Requantization(scale, bias, dict.fromkeys(TFLITE_ENGINES, 0))


def requantization(s: Steps, unit_in: np.float32, unit_out: np.float32) -> Requantization:
    """Scales and biases with which engines step where the twin does, or where that cannot be, with the fewest sums of
    another code. unit_in, unit_out: scales of the codes that are read and written."""
    factor, moved = _placed(s)
    ratio = np.float64(unit_out) / np.float64(unit_in)
    scale = (factor * ratio).astype(np.float32)
    counts = s.unequal(moved, _factors(scale, unit_in, unit_out))
    for off in (1, -1, 2, -2):  # the engine's own product and quotient round in fp32, too
        if not any(count.any() for count in counts.values()):
            break
        other = scale
        for _ in range(abs(off)):
            other = np.nextafter(other, np.float32(np.inf if off > 0 else 0))
        there = s.unequal(moved, _factors(other, unit_in, unit_out))
        better = _cost(there) < _cost(counts)
        scale = np.where(better, other, scale)
        counts = {name: np.where(better, there[name], counts[name]) for name in TFLITE_ENGINES}
    bias = (s.bias[:, 0] + moved).astype(np.int32)
    return Requantization(scale, bias, {name: int(counts[name].sum()) for name in TFLITE_ENGINES})


def _placed(s: Steps) -> tuple[np.ndarray, np.ndarray]:
    """(factor fp64, what is added to the bias), each (outputs,).

    A sum `acc` has the code k or a higher one where acc + moved passes (k - 1/2) / M at XNNPACK, and (k - 1/2) / M less
    1 / (2 m), towards zero, at the other. So each `moved` bounds 1 / M from both sides. Where some leave an interval in
    which both step as the twin, the middle of the widest is taken; elsewhere the end of XNNPACK's interval at which the
    other has the fewest steps elsewhere.
    """
    exact = np.maximum(s.factor[:, 0], 2.0**-60)
    slope = 1 / exact[:, None]
    earlier = (1 / (2 * np.frexp(exact)[0]))[:, None, None]
    middle = (s.codes - 0.5)[None, :, None]
    room = min(int(s.unit.max()) // 2 + 1, 64)
    moved = np.unique(np.linspace(-room, room, CANDIDATES).round().astype(np.int64))
    below, above = (ends[:, :, None] + moved for ends in s.ends())
    early, late = np.where(middle > 0, earlier, 0.0), np.where(middle < 0, earlier, 0.0)
    lower, upper = _bounds(below + early, above - late, middle, slope)
    rows, best = np.arange(len(exact)), (upper - lower).argmax(1)
    low, high = lower[rows, best], upper[rows, best]
    fits = high - low > APART * slope[:, 0]
    lower, upper = _bounds(below, above, middle, slope)
    end = np.where(upper - lower > 2 * APART * slope, upper - APART * slope, np.nan)[:, None, :]
    with np.errstate(invalid="ignore"):
        wrong = ((middle * end - early <= below) & (middle > 0)) | ((middle * end + late > above) & (middle < 0))
    wrong = np.where(np.isnan(end[:, 0]), np.inf, wrong.sum(1))
    fewest = wrong.argmin(1)
    solvable = wrong[rows, fewest] < np.inf
    factor = np.where(fits, 2 / (low + high), np.where(solvable, 1 / end[rows, 0, fewest], exact))
    return factor, np.where(fits, moved[best], np.where(solvable, moved[fewest], 0))


def _bounds(below: np.ndarray, above: np.ndarray, middle: np.ndarray, slope: np.ndarray) -> Any:
    """(lower, upper) of 1 / M, (outputs, moved), so that below < middle / M <= above of all codes."""
    ends = below / middle, above / middle
    lower = np.where(middle > 0, *ends).max(1, initial=0)  # 0, infinite: a grid of one code has no steps
    upper = np.where(middle > 0, *ends[::-1]).min(1, initial=np.inf)
    return np.maximum(lower, slope / 2), np.minimum(upper, slope * 2)


def _cost(counts: dict[str, Any]) -> Any:
    """What is to be least: at XNNPACK, which verifies a file, above all."""
    return 1000 * counts["litert"] + counts["tflm"]


def _factors(scale: np.ndarray, unit_in: np.float32, unit_out: np.float32) -> dict[str, np.ndarray]:
    """M as each engine computes it."""
    litert = (unit_in * scale).astype(np.float32) / unit_out
    return {"litert": litert.astype(np.float32), "tflm": np.float64(unit_in) * scale.astype(np.float64) / unit_out}


@dataclass(frozen=True)
class Pairs:
    """What is computed of two codes. exact: as the twin has it, of codes and steps (the last of the result), fp32;
    engines: {name: of codes and scales}, before the ends of the grid."""

    exact: Callable[[np.ndarray, np.ndarray, Sequence[Any]], np.ndarray]
    engines: Mapping[str, Callable[[np.ndarray, np.ndarray, Any, Any, Any], np.ndarray]]


@dataclass(frozen=True)
class PairScale:
    """scale: of the result. unequal: {engine: by how much codes of pairs are off, added up}. inside: whether no pair
    passes an end of the grid."""

    scale: np.float32
    unequal: dict[str, int]
    inside: bool


def pair_scale(pairs: Pairs, grids: tuple[Grid, Grid, Grid], scales: tuple[Any, Any], unit: float = 1.0) -> PairScale:
    """The scale of a result's tensor, its step but for the last bits, with which the fewest pairs of codes get another
    code than the twin gives them.

    Args:
        pairs: what is computed.
        grids: of the two operands and of the result.
        scales: of the operands' tensors, `unit` times their steps but for the last bits; so is the result's.
    """
    step, low, high = [np.float32(grid.step) for grid in grids], grids[2].low, grids[2].high
    codes = [np.arange(grid.low, grid.high + 1) for grid in grids[:2]]
    first, second = (x.reshape(-1) for x in np.meshgrid(*codes, indexing="ij"))
    exact = pairs.exact(first, second, step)
    inside = bool((exact > low - 0.5 + NEAR_MIDDLE).all() and (exact < high + 0.5 - NEAR_MIDDLE).all())
    near = np.abs(exact - np.floor(exact) - 0.5) < NEAR_MIDDLE
    first, second, expected = first[near], second[near], np.rint(exact[near]).clip(low, high)
    best = None
    for off in sorted(range(-LAST_BITS, LAST_BITS + 1), key=abs):
        scale = np.float32(step[2] * unit * (1 + off * 2.0**-23))
        got = {name: engine(first, second, *scales, scale) for name, engine in pairs.engines.items()}
        counts = {name: int(np.abs(x.clip(low, high) - expected).sum()) for name, x in got.items()}
        if best is None or _cost(counts) < _cost(best.unequal):
            best = PairScale(scale, counts, inside)
    assert best is not None
    return best


def _sum(a: np.ndarray, b: np.ndarray, step: Sequence[Any]) -> np.ndarray:
    return a.astype(np.float32) * (step[0] / step[2]) + b.astype(np.float32) * (step[1] / step[2])


def _product(a: np.ndarray, b: np.ndarray, step: Sequence[Any]) -> np.ndarray:
    return (a * b).astype(np.float32) * (step[0] * step[1] / step[2])


def _litert_sum(a: np.ndarray, b: np.ndarray, first: Any, second: Any, step: Any) -> np.ndarray:
    """XNNPACK's: factors of 21 bits, halves up."""
    factors = first / step, second / step
    shift = 20 - (int(np.frexp(max(factors))[1]) - 1)
    whole = [int(np.rint(np.ldexp(np.float64(factor), shift))) for factor in factors]
    return (a * whole[0] + b * whole[1] + (1 << (shift - 1))) >> shift


def _tflm_sum(a: np.ndarray, b: np.ndarray, first: Any, second: Any, step: Any) -> np.ndarray:
    """TensorFlow Lite Micro's: codes times 2^20, scaled, added, scaled back."""
    twice = 2 * max(np.float64(first), np.float64(second))
    scaled = [tflm_codes(x << 20, np.asarray(np.float64(unit) / twice)) for x, unit in ((a, first), (b, second))]
    return tflm_codes(scaled[0] + scaled[1], np.asarray(twice / (2.0**20 * np.float64(step))))


def _litert_product(a: np.ndarray, b: np.ndarray, first: Any, second: Any, step: Any) -> np.ndarray:
    return litert_codes(a * b, np.float32(first * second) / step)


def _tflm_product(a: np.ndarray, b: np.ndarray, first: Any, second: Any, step: Any) -> np.ndarray:
    return tflm_codes(a * b, np.asarray(np.float64(first) * np.float64(second) / np.float64(step)))


CODE_SUM = Pairs(_sum, {"litert": _litert_sum, "tflm": _tflm_sum})
PRODUCT = Pairs(_product, {"litert": _litert_product, "tflm": _tflm_product})
