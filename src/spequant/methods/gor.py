"""GoR: learned weights of the loss on the labels and of the distillation loss (Rehman et al. 2025, arXiv 2509.20854).

    L = exp(-a) H(y, p_S) + a / 2 + exp(-b) T^2 KL(p_T || p_S) + b / 2,   p = softmax(z / T)

| symbol | here |
|---|---|
| p_S, p_T: student, frozen float teacher; T | `student`, `teacher`, `temperature` |
| a, b: two learned numbers, 0 at first | `trained.logs` |

We know the abstract alone, which says that two trainable parameters weigh the two losses, and not how. The form is that
of Kendall, Gal and Cipolla (2018, arXiv 1705.07115), whose losses of several tasks are weighed so: without a / 2 and
b / 2 both weights would go to 0. They learn at the rate of the weights, whose decay pulls them to 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spequant.methods.base import Losses, Start, TaughtSettings, check_temperature, frozen, penalties
from spequant.methods.losses import kl
from spequant.methods.tasks import Classification, Task, distilled


class LossWeights(nn.Module):
    """The two learned numbers: `logs` is (a, b), shape (2,), fp32; the weights are exp(-logs)."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.zeros(2))


class GoR:
    """Distillation from a float teacher, with learned weights of its loss and of the loss on the labels.

    `Losses.task` and `Losses.distill` are the two losses before their weights.

    Args:
        teacher: The float network, which is copied and frozen.
        temperature: T, above 0.
        task: Makes logits and the loss on the labels; None: classification.

    Attributes:
        trained: The two learned numbers, on the teacher's device; the optimizer needs its parameters.

    Raises:
        ValueError: The temperature is out of range.

    References:
        Rehman et al. 2025, arXiv 2509.20854 (abstract); Kendall, Gal and Cipolla 2018, arXiv 1705.07115 (the form).
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """GoR: distillation whose loss, and that on the labels, have learned weights."""

        temperature: float = 2.0
        """T, the temperature of the softmax"""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)

        def build(self, start: Start) -> "GoR":
            return GoR(self.teacher_of(start), temperature=self.temperature, task=start.task)

    def __init__(self, teacher: nn.Module, *, temperature: float = 2.0, task: Task | None = None):
        check_temperature(temperature)
        self.teacher, self.temperature = frozen(teacher), float(temperature)
        self.trained = LossWeights()
        parameter = next(self.teacher.parameters(), None)
        if parameter is not None:
            self.trained.to(parameter.device)
        self.task = task or Classification()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        with torch.no_grad():
            teacher = self.task.logits(self.teacher, batch)
        task = self.task.loss(student, batch)
        distill = distilled(self.task, kl, student, teacher, batch, self.temperature)
        logs = self.trained.logs
        weights = (-logs).exp()
        total = weights[0] * task + weights[1] * distill + logs.sum() / 2
        return Losses(total + penalties(model), task, distill, student.detach())
