"""Joint multi-bit training: one set of weights that works at several activation widths.

The idea is that of vertical layering (arXiv 2212.05326) and of any-precision networks.

    L = mean_b H(y, p_b) + lambda T^2 mean_b<B KL(p_B || p_b),   p = softmax(z / T) in the KL term

| symbol | here |
|---|---|
| b: the home width, which is the fewest bits of the model's activations, and the other widths | `home`, `widths` |
| B: the largest b; it teaches the others and gets no gradient from the KL term | `largest` |
| T, lambda | `temperature`, `weight` |

We had only the abstract: activation widths in place of weight widths and the form of the loss are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spequant.methods.base import (
    Losses,
    MethodSettings,
    Start,
    check_temperature,
    check_weight,
    penalties,
)
from spequant.methods.losses import kl
from spequant.methods.tasks import Classification, Task, distilled
from spequant.methods.widths import at_widths, fewest_bits
from spequant.processes import unwrapped
from spequant.quantizers.base import check_bits


class JointBits:
    """Joint training at several activation widths; the largest width teaches the others.

    `Losses.task` is at the home width. Losses are in nats, means over samples. A call raises a ValueError if the model
    has no activation quantizer.

    Args:
        widths: Activation bits in addition to the model's, in rising order; they may be below the model's.
        temperature: T, above 0.
        weight: lambda, 0 or more.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range, or `widths` is empty or not in rising order.

    References:
        arXiv 2212.05326.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Joint multi-bit training: the network learns at several activation widths at once."""

        widths: tuple[int, ...] = (4, 8)
        """activation bits in addition to the network's"""
        temperature: float = 1.0
        """T, the temperature of the softmax"""
        weight: float = 1.0
        """lambda, the weight of the distillation loss"""

        def __post_init__(self) -> None:
            self.make()

        def make(self, task: Task | None = None) -> "JointBits":
            """Return the method; raise a ValueError if a setting is out of range."""
            return JointBits(self.widths, temperature=self.temperature, weight=self.weight, task=task)

        def build(self, start: Start) -> "JointBits":
            return self.make(start.task)

    def __init__(
        self,
        widths: Sequence[int] = (4, 8),
        *,
        temperature: float = 1.0,
        weight: float = 1.0,
        task: Task | None = None,
    ):
        check_temperature(temperature)
        check_weight(weight, "weight")
        if not widths or list(widths) != sorted(set(widths)):
            raise ValueError(f"widths is {widths!r}; expected activation bits in rising order, e.g. (4, 8)")
        for width in widths:
            check_bits(width, "widths")
        self.widths, self.task = tuple(widths), task or Classification()
        self.temperature, self.weight = float(temperature), float(weight)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        home = fewest_bits(unwrapped(model))
        widths = [width for width in self.widths if width != home]
        logits = {home: student, **dict(zip(widths, at_widths(model, widths, self.task, batch), strict=True))}
        task = self.task.loss(student, batch)
        labels = torch.stack([task, *(self.task.loss(logits[width], batch) for width in widths)]).mean()
        largest = logits.pop(max(logits))
        target, t = largest.detach(), self.temperature
        others = logits.values() or [largest]
        distill = torch.stack([distilled(self.task, kl, z, target, batch, t) for z in others]).mean()
        return Losses(labels + self.weight * distill + penalties(model), task, distill, student.detach())
