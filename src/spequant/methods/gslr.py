"""GSLR: distillation whose soft loss fades (Shin, Boo and Sung 2019, arXiv 1909.01688).

    L = (1 - w) H(y, p_S) + w T^2 KL(p_T || p_S),   w = w0 (1 - n / N)

| symbol | here |
|---|---|
| p = softmax(z / T) in the KL term; the teacher is float and frozen | `teacher`, `temperature` |
| n, N: calls so far, calls in the whole training | `step`, `steps` |
| w0 | `weight` |

The abstract says that the soft loss is reduced gradually. The straight line to 0 and T = 2 are ours.
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
from spequant.methods.tasks import Classification, Task, distilled


class GSLR(CountsCalls):
    """GSLR: distillation from a float teacher whose share of the loss falls to 0.

    `Losses.distill` is T^2 KL(p_T || p_S), before w. Losses are in nats, means over samples.

    Args:
        teacher: The float network, which is copied and frozen, in eval mode.
        steps: N, the calls of the method in the whole training, 1 or more; each part of an accumulated batch is a
            call. After them w stays 0.
        weight: w0, 0 to 1.
        temperature: T, above 0.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range.

    References:
        Shin, Boo and Sung 2019, arXiv 1909.01688.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """GSLR: distillation whose share of the loss falls to 0."""

        weight: float = 1.0
        """w0, the share of the distillation loss at the start, 0 to 1"""
        temperature: float = 2.0
        """T, the temperature of the softmax"""

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
        task = self.task.loss(student, batch)
        distill = distilled(self.task, kl, student, teacher, batch, self.temperature)
        return Losses((1 - w) * task + w * distill + penalties(model), task, distill, student.detach())


def check_share(value: float) -> None:
    """Raise a ValueError unless the share of the soft loss is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"weight is {value!r}; expected the soft loss's share at the start, 0 to 1")
