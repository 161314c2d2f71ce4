"""GSLR: distillation whose soft loss fades (Shin, Boo and Sung 2019, arXiv 1909.01688).

    L = (1 - w) H(y, p_S) + w T^2 KL(p_T || p_S),   w = w0 (1 - n / N)

| symbol | here |
|---|---|
| p = softmax(z / T) in the KL term; the teacher is float and frozen | `teacher`, `temperature` |
| n of N: calls so far | `step`, `steps` |
| w0 | `weight` |

Known from the abstract: the soft loss is reduced gradually. That it falls in a straight line, to 0 at the end, and
T = 2 are ours.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spequant.methods.base import (
    CountsCalls,
    Losses,
    Start,
    TaughtSettings,
    check_steps,
    check_temperature,
    frozen,
    penalties,
)
from spequant.methods.losses import kl
from spequant.methods.tasks import Classification, Task


class GSLR(CountsCalls):
    """teacher: the float network, copied and frozen, in eval mode. steps: N, calls in all, 1 or more, of which each
    part of an accumulated batch is one; beyond them w stays 0. weight: w0, 0 to 1. temperature: above 0.

    (model, batch) -> Losses: logits (batch, classes), or (batch, parts, classes), as `task` makes them; `total`, `task`
    and `distill` 0-dim, in nats, means over samples; `distill` is T^2 KL(p_T || p_S), before w. ValueError: steps,
    weight or temperature out of range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """GSLR: distillation whose share fades."""

        weight: float = 1.0
        """w0, the soft loss's share at the start, 0 to 1"""
        temperature: float = 2.0
        """T"""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)
            check_share(self.weight)

        def build(self, start: Start) -> "GSLR":
            options = {"weight": self.weight, "temperature": self.temperature}
            return GSLR(self.teacher_of(start), steps=start.steps, task=start.task, **options)

    def __init__(
        self,
        teacher: nn.Module,
        *,
        steps: int,
        weight: float = 1.0,
        temperature: float = 2.0,
        task: Task | None = None,
    ):
        check_steps(steps)
        check_temperature(temperature)
        check_share(weight)
        self.teacher = frozen(teacher)
        self.steps, self.weight, self.temperature = steps, float(weight), float(temperature)
        self.task = task or Classification()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        w = self.weight * max(0.0, 1 - self.step / self.steps)
        self.step += 1
        with torch.no_grad():
            teacher = self.task.logits(self.teacher, batch)
        student = self.task.logits(model, batch)
        task, distill = self.task.loss(student, batch), kl(student, teacher, self.temperature)
        return Losses((1 - w) * task + w * distill + penalties(model), task, distill, student.detach())


def check_share(value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"weight is {value!r}; expected the soft loss's share at the start, 0 to 1")
