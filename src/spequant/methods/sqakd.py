"""SQAKD: self-supervised quantization-aware knowledge distillation (Zhao and Zhao 2024, arXiv 2403.11106).

    L = T^2 KL(p_T || p_S),   p = softmax(z / T),   T = 4

No labels. The float teacher is also the student's start. Its backward is EWGS, which is the quantizers' matter:
`spequant.quantizers.set_ewgs(model, .001)`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spequant.methods.base import (
    Losses,
    Start,
    TaughtSettings,
    check_temperature,
    frozen,
    penalties,
)
from spequant.methods.losses import kl
from spequant.methods.tasks import Classification, Task


class SQAKD:
    """teacher: the float network, copied and frozen. `Losses.task` is 0: labels are not read."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """SQAKD: a float teacher in place of labels."""

        temperature: float = 4.0
        """T"""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)

        def build(self, start: Start) -> "SQAKD":
            return SQAKD(self.teacher_of(start), temperature=self.temperature, task=start.task)

    def __init__(self, teacher: nn.Module, *, temperature: float = 4.0, task: Task | None = None):
        check_temperature(temperature)
        self.teacher = frozen(teacher)
        self.temperature, self.task = float(temperature), task or Classification()

    @torch.no_grad()
    def teach(self, batch: Any) -> Tensor:
        """The teacher's logits, without gradient."""
        return self.task.logits(self.teacher, batch)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        distill = kl(student, self.teach(batch), self.temperature)
        return Losses(distill + penalties(model), distill.new_zeros(()), distill, student.detach())
