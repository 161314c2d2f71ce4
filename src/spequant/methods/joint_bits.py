"""Joint multi-bit training: one weight set that answers at several activation widths (after the idea of vertical
layering, arXiv 2212.05326, and of any-precision networks).

    L = mean_b H(y, p_b) + lambda T^2 mean_b<B KL(p_B || p_b),   p = softmax(z / T) in the KL term

b: the home width and `widths`; B, the largest, teaches the others and gets no gradient from that. Only the abstract is
known here: activation widths in place of weight widths, and the loss's form, are ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spequant.losses import kl
from spequant.methods.base import Losses, check_temperature, check_weight, penalties
from spequant.methods.widths import at_widths
from spequant.precision import check_width
from spequant.tasks import Classification, Task


class JointBits:
    """widths: activation bits beside the model's own, in rising order. `Losses.task` is at the model's own width."""

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
            check_width(width, "widths")
        self.widths, self.task = tuple(widths), task or Classification()
        self.temperature, self.weight = float(temperature), float(weight)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        *between, largest = at_widths(model, self.widths, self.task, batch)
        lower = [student, *between]
        task = self.task.loss(student, batch)
        labels = torch.stack([task, *(self.task.loss(z, batch) for z in (*between, largest))]).mean()
        distill = torch.stack([kl(z, largest.detach(), self.temperature) for z in lower]).mean()
        return Losses(labels + self.weight * distill + penalties(model), task, distill, student.detach())
