"""Precision of activations for the time of a `with` block: random, as for the SPEQ teacher, or chosen per layer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from spequant.layers import act_quantizers
from spequant.quantizers.base import Quantizer, check_bits
from spequant.recomputation import entered_again


def check_seed(value: object, argument: str = "seed") -> None:
    """Raise a ValueError unless `value`, from which random numbers follow, is a whole number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{argument} is {value!r}; expected a whole number of 0 or more")


class Policy(Protocol):
    """Choice of bits for each activation quantizer."""

    def draw(self, home: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        """Return the bits of each quantizer, in the order of `home`.

        Args:
            home: {name of quantizer: bits that it trains at}.
            rng: source of randomness.
        """
        ...


@dataclass(frozen=True)
class Stochastic:
    """Each layer at `high_bits` with `probability`, else at its home bits: SPEQ's stochastic precision path.

    Args:
        high_bits: 1 to 8; a layer with more home bits keeps them.
        probability: 0 to 1; at 1 all layers are at `high_bits`.

    Raises:
        ValueError: an argument is out of range.

    References:
        Boo et al., AAAI 2021, arXiv 2009.14502.
    """

    high_bits: int = 8
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_bits(self.high_bits, "high_bits")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability!r}; expected a number from 0 to 1 (the paper: 0.5)")

    @property
    def highest(self) -> int:
        """The most bits that a draw can raise a layer to."""
        return self.high_bits

    def draw(self, home: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        high = rng.random(len(home)) < self.probability
        return [max(self.high_bits, bits) if up else bits for bits, up in zip(home.values(), high, strict=True)]


@dataclass(frozen=True)
class Mix:
    """Each layer at one of `widths`, all equally likely, but at no fewer than its home bits.

    Args:
        widths: numbers of bits, 1 to 8.

    Raises:
        ValueError: `widths` is empty, or holds other values.
    """

    widths: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("widths is empty; expected at least one number of bits")
        for width in self.widths:
            check_bits(width, "widths")

    @property
    def highest(self) -> int:
        """The most bits that a draw can raise a layer to."""
        return max(self.widths)

    def draw(self, home: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        indices = rng.integers(len(self.widths), size=len(home))
        return [max(self.widths[i], bits) for i, bits in zip(indices, home.values(), strict=True)]


@dataclass(frozen=True)
class Fixed:
    """The same bits for every layer, or bits by patterns of layer names.

    Bits below the home bits make the grid between the bounds coarser. Where zero would then fall between two levels
    (signed LSQ, with bounds -Qn s and Qp s), the grid is shifted by up to half a step, so that it contains zero.

    Args:
        bits: 1 to 8, or {pattern: bits} with shell wildcards; later patterns take precedence, and layers that match no
            pattern keep their home bits.

    Raises:
        ValueError: bits out of range, or no pattern; in `draw`, a pattern that matches no quantizer.
    """

    bits: int | Mapping[str, int]

    def __post_init__(self) -> None:
        for width in self.bits.values() if isinstance(self.bits, Mapping) else [self.bits]:
            check_bits(width, "bits")

    def draw(self, home: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        if isinstance(self.bits, int):
            return [self.bits] * len(home)
        widths = dict(home)
        for pattern, bits in self.bits.items():
            names = [name for name in home if fnmatchcase(name, pattern)]
            if not names:
                raise ValueError(f"pattern {pattern!r} matches no activation quantizer; there are {', '.join(home)}")
            widths.update(dict.fromkeys(names, bits))
        return list(widths.values())


@dataclass(frozen=True)
class LowBit:
    """The layers with the fewest home bits at `bits`; the others (ends, addends of residual additions) keep theirs.

    Args:
        bits: 1 to 8.
        trained: home bits of the layers that change; None means the fewest in the model.

    Raises:
        ValueError: bits out of range; in `draw`, no layer has `trained` bits.
    """

    bits: int
    trained: int | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits, "bits")

    def draw(self, home: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        trained = min(home.values()) if self.trained is None else self.trained
        if trained not in home.values():
            raise ValueError(f"trained is {trained!r}; activations here have {sorted(set(home.values()))} bits")
        return [self.bits if bits == trained else bits for bits in home.values()]


@contextmanager
def precision(model: nn.Module, policy: Policy, *, seed: int = 0, step: int = 0, rank: int = 0) -> Iterator[None]:
    """Inside this context, the activation quantizers of `model` run at the bits that `policy` draws.

    The bounds do not move. At the end, also after an exception, all quantizers return to their grids. Inside, copying
    and pickling the model are refused. Functions that are checkpointed inside (torch.utils.checkpoint) are computed
    again at the same bits, also when backward runs outside.

    The context holds for the thread that enters it: in other threads the model runs at its home bits. A compiled model
    runs at the drawn bits in every thread.

    Args:
        model: a prepared, calibrated network.
        policy: for example `Stochastic()` or `Fixed(8)`.
        seed, step, rank: the draw follows only from these three, whole numbers of 0 or more.

    Raises:
        ValueError: the model has no activation quantizer, `policy` does not fit it, or a number is negative.
        RuntimeError: another thread is inside a context of this model.
    """
    quantizers = {name: q for name, q in act_quantizers(model).items() if q.bits is not None}
    if not quantizers:
        raise ValueError("model has no activation quantizer to switch: prepare it with act=, e.g. PACT(2)")
    for argument, value in {"seed": seed, "step": step, "rank": rank}.items():
        check_seed(value, argument)
    rng = np.random.default_rng((seed, step, rank))
    home = {name: q.bits for name, q in quantizers.items() if q.bits is not None}
    counts = [float(q.levels_at(b)) for q, b in zip(quantizers.values(), policy.draw(home, rng), strict=True)]
    # One small transfer for all layers, which is not waited for; each quantizer gets a view of its number.
    levels = torch.tensor(counts).to(next(iter(quantizers.values())).levels.device, non_blocking=True).unbind()
    with _switched(list(quantizers.values()), levels):
        yield


@contextmanager
def _switched(quantizers: Sequence[Quantizer], levels: Sequence[Tensor]) -> Iterator[None]:
    """Inside this context, each of `quantizers` has the number of levels at its place in `levels`."""
    before: list[tuple[Tensor, bool]] = []
    try:
        with entered_again(lambda: _switched(quantizers, levels)):
            for q, number in zip(quantizers, levels, strict=True):
                earlier = q.levels, q.levels is q.home_levels
                q.levels = number
                before.append(earlier)
            yield
    finally:
        for q, (number, home) in zip(quantizers, before, strict=False):
            q.levels = q.home_levels if home else number  # moving the model inside has made home_levels another tensor


@contextmanager
def unquantized(quantizers: Iterable[Quantizer]) -> Iterator[None]:
    """Inside this context, each of `quantizers` returns its tensor as it is, in every thread. A quantizer that another
    function stands in for keeps that function. Copies of a model quantize as ever."""
    free = [q for q in quantizers if q.watch is None]
    try:
        with entered_again(lambda: unquantized(free)):
            for q in free:
                q.watch = _unchanged
            yield
    finally:
        for q in free:
            q.watch = None


def _unchanged(_: Quantizer, x: Tensor) -> Tensor:
    return x
