"""Apprentice (Mishra and Marr 2018, arXiv 1711.05852).

    L = a H(y, p_T) + b H(y, p_S) + g H(p_T, p_S),   p = softmax(z)

| symbol | here |
|---|---|
| p_S, the quantized student's | `student`, one forward with gradient |
| p_T, the float teacher's | `teacher` |
| a, b, g: 1, .5, .5 | `teacher_weight`, `label_weight`, `soft_weight` |

Three schemes: A, both learn together (`joint=True`); B, the teacher is trained and fixed, the student starts at random;
C, the teacher is fixed and the student starts from float weights. B and C are one loss and differ by the student that
is given. Open there and ours to choose: the third term's z_T, logits, is read as softmax(z_T), and in scheme A the
teacher gets no gradient from it.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from spequant.methods.base import (
    Losses,
    Start,
    TaughtSettings,
    check_weight,
    frozen,
    penalties,
)
from spequant.methods.tasks import Classification, Task


class Apprentice:
    """teacher: the float network; a copy of it teaches, and with `joint` learns, in train mode. `Losses.distill` is
    H(p_T, p_S); the total has the teacher's own loss in it where it learns."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """Apprentice: a float teacher, fixed or learning as well."""

        joint: bool = False
        """the teacher learns as well (scheme A)"""

        def build(self, start: Start) -> "Apprentice":
            return Apprentice(self.teacher_of(start), joint=self.joint, task=start.task)

        @property
        def fixed_teachers(self) -> tuple[TaughtSettings, ...]:
            return () if self.joint else (self,)

    def __init__(
        self,
        teacher: nn.Module,
        *,
        joint: bool = False,
        teacher_weight: float = 1.0,
        label_weight: float = 0.5,
        soft_weight: float = 0.5,
        task: Task | None = None,
    ):
        weights = {"teacher_weight": teacher_weight, "label_weight": label_weight, "soft_weight": soft_weight}
        for argument, value in weights.items():
            check_weight(value, argument)
        self.joint, self.task = joint, task or Classification()
        self.a, self.b, self.g = float(teacher_weight), float(label_weight), float(soft_weight)
        self.teacher = copy.deepcopy(teacher).train() if joint else frozen(teacher)
        self.trained = self.teacher if joint else None

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        with torch.set_grad_enabled(self.joint):
            teacher = self.task.logits(self.teacher, batch)
        distill = _cross_entropy(teacher.detach(), student)
        total = self.b * task + self.g * distill + penalties(model)
        if self.joint:
            total = total + self.a * self.task.loss(teacher, batch)
        return Losses(total, task, distill, student.detach())


def _cross_entropy(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """H(p_T, p_S), mean over samples and parts; classes masked with -inf count for nothing."""
    log_s = F.log_softmax(student.float(), dim=-1)
    log_s = log_s.masked_fill(torch.isneginf(log_s), 0.0)
    return -(F.softmax(teacher.float(), dim=-1) * log_s).sum(-1).mean()
