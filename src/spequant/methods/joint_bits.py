"""Joint multi-bit training: one weight set that answers at several activation widths (after the idea of vertical
layering, arXiv 2212.05326, and of any-precision networks).

    L = mean_b H(y, p_b) + lambda T^2 mean_b<B KL(p_B || p_b),   p = softmax(z / T) in the KL term

b: the home width, the fewest bits of the model's activations, and `widths`; B, the largest of them all, teaches the
others and gets no gradient from that. Only the abstract is known here: activation widths in place of weight widths, and
the loss's form, are ours.
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
from spequant.methods.tasks import Classification, Task
from spequant.methods.widths import at_widths, fewest_bits
from spequant.processes import unwrapped
from spequant.quantizers.base import check_bits


class JointBits:
    """widths: activation bits beside the model's own, in rising order; they may lie below it. `Losses.task` is at the
    model's own width.

    (model, batch) -> Losses: logits (batch, classes), or (batch, parts, classes), as `task` makes them; `total`, `task`
    and `distill` 0-dim, in nats, means over samples. ValueError: widths, temperature or weight out of range, or a model
    without activation quantizers.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """All widths learn at once."""

        widths: tuple[int, ...] = (4, 8)
        """activation bits in addition to the network's own"""
        temperature: float = 1.0
        """T"""
        weight: float = 1.0
        """lambda, of the distillation loss"""

        def __post_init__(self) -> None:
            self.made()

        def made(self, task: Task | None = None) -> "JointBits":
            """The method; ValueError: a setting out of range."""
            return JointBits(self.widths, temperature=self.temperature, weight=self.weight, task=task)

        def build(self, start: Start) -> "JointBits":
            return self.made(start.task)

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
        others = [width for width in self.widths if width != home]
        logits = {home: student, **dict(zip(others, at_widths(model, others, self.task, batch), strict=True))}
        task = self.task.loss(student, batch)
        labels = torch.stack([task, *(self.task.loss(logits[width], batch) for width in others)]).mean()
        largest = logits.pop(max(logits))
        distill = torch.stack([kl(z, largest.detach(), self.temperature) for z in logits.values() or [largest]]).mean()
        return Losses(labels + self.weight * distill + penalties(model), task, distill, student.detach())
