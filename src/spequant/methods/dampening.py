"""Oscillation dampening: a loss that keeps weights away from the edges of their bins (Nagel et al. 2022).

    L = H(y, p_S) + lambda sum over layers of |w^ - clip(w, low, high)|^2

| symbol | here |
|---|---|
| w, w^: float weight and quantized values, which give no gradient; low, high: the ends of the grid | `dampening` |
| lambda: 0 until the share .25 of training, then along half a cosine to its last value, .1 | `start`, `weight` |

Per layer the squares are summed over output channels, and the mean is taken over all else: what the authors' released
code does by default, with these numbers; their paper sums over all. The other remedy of the paper, freezing, is
`spequant.train.OscillationFreezer`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spequant.methods.base import (
    CountsCalls,
    Losses,
    MethodSettings,
    Start,
    check_steps,
    check_weight,
    penalties,
)
from spequant.methods.parts import float_weights
from spequant.methods.tasks import Classification, Task
from spequant.quantizers import Quantizer


class Dampening(CountsCalls):
    """Training on the labels, with a term that pulls float weights to their level, so that they oscillate less.

    There is no teacher: `Losses.distill` is 0, and the term is in `Losses.total`.

    Args:
        steps: Calls of the method in the whole training, 1 or more.
        weight: lambda at the end of training, 0 or more.
        start: Share of the calls before which lambda is 0, 0 or more and below 1.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range.

    References:
        Nagel, Fournarakis, Bondarenko and Blankevoort 2022, arXiv 2203.11086.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Oscillation dampening: training on the labels, with weights kept away from the edges of their bins."""

        weight: float = 0.1
        """lambda at the end of training, reached along half a cosine"""
        start: float = 0.25
        """share of training before which lambda is 0, below 1"""

        def __post_init__(self) -> None:
            Dampening(steps=1, weight=self.weight, start=self.start)

        def build(self, start: Start) -> "Dampening":
            return Dampening(steps=start.steps, weight=self.weight, start=self.start, task=start.task)

    def __init__(self, *, steps: int, weight: float = 0.1, start: float = 0.25, task: Task | None = None):
        check_steps(steps)
        check_weight(weight, "weight")
        if not 0 <= start < 1:
            raise ValueError(f"start is {start!r}; expected a share of training, 0 or more and below 1")
        self.steps, self.weight, self.start = steps, float(weight), float(start)
        self.task = task or Classification()

    @property
    def present_weight(self) -> float:
        """lambda at the present call."""
        done = (self.step / self.steps - self.start) / (1 - self.start)
        return self.weight * (1 - math.cos(math.pi * min(1.0, max(0.0, done)))) / 2

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        weight = self.present_weight
        self.step += 1
        logits = self.task.logits(model, batch)
        task = self.task.loss(logits, batch)
        total = task + penalties(model)
        if weight:
            total = total + weight * torch.stack([dampening(w, q) for w, q in float_weights(model)]).sum()
        return Losses(total, task, task.new_zeros(()), logits.detach())


def dampening(weight: Float[Tensor, "out *rest"], quantizer: Quantizer) -> Float[Tensor, ""]:
    """Return the mean over all axes but the first of sum (w^ - clip(w, low, high))^2 over the first, 0-dim.

    Args:
        weight: The float weight.
        quantizer: Its calibrated quantizer.
    """
    with torch.no_grad():
        target = quantizer(weight)
        low, high = quantizer.span(weight)
    inside = torch.minimum(torch.maximum(weight.float(), low), high)
    return (target.float() - inside).square().sum(0).mean()
