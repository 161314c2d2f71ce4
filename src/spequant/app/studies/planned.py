"""What mixed networks take as C, by the planner of `spequant fit`, and the best bits within so much flash or memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from spequant.app.recipes.quantization import Quantization
from spequant.app.studies.sensitivity import assign
from spequant.deploy import lower
from spequant.deploy.c.footprint import CODE, STACK, Footprint, footprint

PLANNED = ("flash", "ram")
"""Budgets that the planner measures."""
TRIES = 8

Planner = Callable[[Mapping[str, int]], Footprint]
"""What a network takes whose layers have these bits."""


@dataclass(frozen=True)
class Plans:
    """Networks of a planner.

    Args:
        plan: The planner.
        widths: The bits that a layer may have, from the fewest on.
    """

    plan: Planner
    widths: tuple[int, ...]
    footprints: dict[tuple[tuple[str, int], ...], Footprint] = field(default_factory=dict)

    def cost(self, widths: Mapping[str, int], what: str) -> int:
        """Return the bytes of flash or ram (`what`) with layers of these bits."""
        return getattr(self._of(widths), what)

    def best(self, losses: Mapping[str, Mapping[int, float]], budget: float, what: str) -> dict[str, int]:
        """Return the bits of each layer with the least sum of losses, the network within `budget`.

        What more bits of a layer take is planned for each layer alone; that these add up, at each step of the program,
        is an assumption. So the answer is planned whole; where it takes more than the budget, or less, less or more is
        tried.

        Args:
            losses: {layer: {bits: loss}}.
            budget: Bytes.
            what: flash or ram.

        Raises:
            ValueError: The budget is less than the fewest bits take.
        """
        least = dict.fromkeys(losses, self.widths[0])
        base = self._bytes(least, what)
        each = base / len(losses) - base
        costs = {
            name: {bits: each + self._bytes({**least, name: bits}, what, len(base)) for bits in self.widths}
            for name in losses
        }
        if self.cost(least, what) > budget:
            needed = self.cost(least, what)
            raise ValueError(f"budget is {budget:,.0f}; expected {needed:,} or more, which the fewest bits take")
        room, best, tried = budget, least, []
        for _ in range(TRIES):
            try:
                chosen = assign(losses, costs, room)
            except ValueError:  # less room than the sums of single layers say that the fewest bits take
                break
            if chosen in tried:
                break
            tried.append(chosen)
            left = budget - self.cost(chosen, what)
            if left >= 0 and _loss(losses, chosen) < _loss(losses, best):
                best = chosen
            room += left
        return best

    def _of(self, widths: Mapping[str, int]) -> Footprint:
        key = tuple(sorted(widths.items()))
        if key not in self.footprints:
            self.footprints[key] = self.plan(widths)
        return self.footprints[key]

    def _bytes(self, widths: Mapping[str, int], what: str, steps: int | None = None) -> np.ndarray:
        """What is limited, (1,) of flash, (steps,) of ram. steps: None: those of the program; another that has more or
        fewer is stretched."""
        took = self._of(widths)
        if what == "flash":
            return np.array([took.constants + CODE], dtype=float)
        alive = np.array(took.alive, dtype=float)
        if steps not in (None, len(alive)):
            alive = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(alive)), alive)
        return alive + took.scores + STACK


def _loss(losses: Mapping[str, Mapping[int, float]], widths: Mapping[str, int]) -> float:
    return sum(losses[name][bits] for name, bits in widths.items())


def planned(
    quant: Quantization, network: nn.Module, batches: list[Any], example: Any, widths: tuple[int, ...]
) -> Plans:
    """Return the planner of a float network.

    Args:
        quant: How it is quantized; layers get the planner's bits by `overrides`.
        batches: To calibrate on; one does.
        example: A batch of inputs.
        widths: The bits that a layer may have.
    """

    def plan(bits: Mapping[str, int]) -> Footprint:
        overrides = (*quant.overrides, *(f"{name}={width}" for name, width in bits.items()))
        model = replace(quant, overrides=overrides).calibrated(network, batches)
        return footprint(lower(model.eval(), example))

    return Plans(plan, widths)
