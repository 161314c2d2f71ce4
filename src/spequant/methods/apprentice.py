"""Apprentice (Mishra and Marr 2018, arXiv 1711.05852).

    L = a H(y, p_T) + b H(y, p_S) + g H(p_T, p_S),   p = softmax(z)

| symbol | here |
|---|---|
| p_S, the quantized student's | `student`, one forward with gradient |
| p_T, the float teacher's | `teacher` |
| a, b, g: 1, .5, .5 | `teacher_weight`, `label_weight`, `soft_weight` |

The paper has three schemes. A: both networks learn together (`joint=True`). B: the teacher is trained before and fixed,
and the student starts at random. C: the teacher is fixed, and the student starts from float weights. B and C have the
same loss; they differ only in the student that the caller passes. The paper leaves two points open, where the choice is
ours: z_T in the third term are logits, so the term uses softmax(z_T); and in scheme A the teacher gets no gradient from
this term.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spequant.methods.base import (
    Losses,
    Start,
    TaughtSettings,
    check_weight,
    frozen,
    penalties,
)
from spequant.methods.losses import cross_entropy
from spequant.methods.tasks import Classification, Task, distilled


class Apprentice:
    """Apprentice: a float teacher, which is fixed or learns together with the student.

    `Losses.distill` is H(p_T, p_S). `Losses.total` includes the teacher's loss on the labels if the teacher learns.

    Args:
        teacher: The float network, which is copied.
        joint: Whether the teacher learns as well, in train mode (scheme A).
        teacher_weight, label_weight, soft_weight: a, b and g, 0 or more.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A weight is negative.

    References:
        Mishra and Marr 2018, arXiv 1711.05852.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """Apprentice: a float teacher, which is fixed or learns together with the student."""

        joint: bool = False
        """whether the teacher learns as well (scheme A)"""

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
        distill = distilled(self.task, cross_entropy, student, teacher.detach(), batch, 1.0)
        total = self.b * task + self.g * distill + penalties(model)
        if self.joint:
            total = total + self.a * self.task.loss(teacher, batch)
        return Losses(total, task, distill, student.detach())
