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

from spequant.methods.base import Losses, penalties
from spequant.methods.losses import kl
from spequant.methods.tasks import Task, distilled
from spequant.methods.widths import SeveralWidths, at_widths, fewest_bits
from spequant.processes import unwrapped


class JointBits(SeveralWidths):
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
    class Settings(SeveralWidths.Settings):
        """Joint multi-bit training: the network learns at several activation widths at once."""

        def make(self, task: Task | None = None) -> "JointBits":
            return JointBits(self.widths, temperature=self.temperature, weight=self.weight, task=task)

    def __init__(
        self,
        widths: Sequence[int] = (4, 8),
        *,
        temperature: float = 1.0,
        weight: float = 1.0,
        task: Task | None = None,
    ):
        super().__init__(widths, temperature=temperature, weight=weight, task=task)
        if list(widths) != sorted(set(widths)):
            raise ValueError(f"widths is {widths!r}; expected activation bits in rising order, e.g. (4, 8)")

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
