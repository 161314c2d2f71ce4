"""Activation precision for a while: random (the SPEQ teacher's), or a fixed assignment; bounds stay where they are."""

from collections.abc import Iterator, Mapping, Sequence
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


class Policy(Protocol):
    """Chooses a width for each activation quantizer: `draw(home, rng)` -> bits, `home` {layer name: trained bits}."""

    def draw(self, home: Mapping[str, int], rng: np.random.Generator) -> list[int]: ...


@dataclass(frozen=True)
class Stochastic:
    """Each layer, at each forward: `high_bits` with `probability`, else its own bits. SPEQ's stochastic precision path.

    probability 1 is the teacher with all layers at `high_bits`.
    """

    high_bits: int = 8
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_bits(self.high_bits, "high_bits")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability!r}; expected a number from 0 to 1 (the paper: 0.5)")

    def draw(self, home: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        high = rng.random(len(home)) < self.probability
        return [max(self.high_bits, bits) if up else bits for bits, up in zip(home.values(), high, strict=True)]


@dataclass(frozen=True)
class Mix:
    """Each layer, at each forward: one of `widths`, all equally likely, but no less than its own bits."""

    widths: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("widths is empty; expected at least one number of bits")
        for width in self.widths:
            check_bits(width, "widths")

    def draw(self, home: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        drawn = rng.integers(len(self.widths), size=len(home))
        return [max(self.widths[i], bits) for i, bits in zip(drawn, home.values(), strict=True)]


@dataclass(frozen=True)
class Fixed:
    """The same `bits` for every layer, or {pattern of layer names: bits}; layers without a match keep their own.

    May go below the trained bits: the grid between the bounds gets coarser. Where zero would then fall between two
    levels (signed LSQ: bounds -Qn s and Qp s) the grid moves by up to half of its step, so that zero stays on it.
    """

    bits: int | Mapping[str, int]

    def __post_init__(self) -> None:
        for width in self.bits.values() if isinstance(self.bits, Mapping) else [self.bits]:
            check_bits(width, "bits")

    def draw(self, home: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        if isinstance(self.bits, int):
            return [self.bits] * len(home)
        chosen = dict(home)
        for pattern, bits in self.bits.items():
            hits = [name for name in home if fnmatchcase(name, pattern)]
            if not hits:
                raise ValueError(f"pattern {pattern!r} matches no activation quantizer; there are {', '.join(home)}")
            chosen.update(dict.fromkeys(hits, bits))
        return list(chosen.values())


@dataclass(frozen=True)
class LowBit:
    """The layers that were trained at `trained` bits at `bits`; the others (ends, addends of residual additions) keep
    theirs. trained: None: the fewest bits that there are."""

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
    """Inside, the activation quantizers of `model` run at the widths that `policy` draws; their bounds do not move.

    The draw follows from (seed, step, rank) alone. Everything is put back at the end, after an exception too. Inside,
    copying or pickling the model is refused. What is checkpointed inside (torch.utils.checkpoint) is computed again at
    the same widths, when backward runs outside, too.

    Threads: the context holds for the thread that enters it; in others the model runs at its own widths. A compiled
    model runs at the drawn ones in every thread. RuntimeError: another thread is inside a context of this model.
    """
    quantizers = act_quantizers(model)
    if not quantizers:
        raise ValueError("model has no activation quantizer to switch: prepare it with act=, e.g. PACT(2)")
    rng = np.random.default_rng((seed, step, rank))
    home = {name: int(q.bits or 0) for name, q in quantizers.items()}
    counts = [float(q.levels_at(b)) for q, b in zip(quantizers.values(), policy.draw(home, rng), strict=True)]
    # One small transfer for all layers, without waiting for it; each quantizer holds a view of its own number.
    levels = torch.tensor(counts).to(next(iter(quantizers.values())).levels.device, non_blocking=True).unbind()
    with _switched(list(quantizers.values()), levels):
        yield


@contextmanager
def _switched(quantizers: Sequence[Quantizer], levels: Sequence[Tensor]) -> Iterator[None]:
    """Inside, each of `quantizers` has its number of `levels`."""
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
            q.levels = q.home_levels if home else number  # after a move inside, the home grid is another tensor
