"""SQAKD: self-supervised quantization-aware knowledge distillation (Zhao and Zhao 2024, arXiv 2403.11106).

    L = T^2 KL(p_T || p_S),   p = softmax(z / T),   T = 4

| symbol | here |
|---|---|
| p_S, p_T: the quantized student, the float teacher from whose weights it starts | `student`, `teach` |
| T | `temperature` |

The method reads no labels. The paper's gradient is EWGS, which is an option of the quantizers:
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
from spequant.methods.tasks import Classification, Task, distilled


class SQAKD:
    """SQAKD: distillation from a float teacher without labels; `Losses.task` is 0.

    Args:
        teacher: The float network, which is copied and frozen.
        temperature: T, above 0.
        task: Makes logits; None: classification.

    Raises:
        ValueError: `temperature` is not above 0.

    References:
        Zhao and Zhao 2024, arXiv 2403.11106.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """SQAKD: distillation from a float teacher, without labels."""

        temperature: float = 4.0
        """T, the temperature of the softmax"""

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
        """Return the teacher's logits, without gradient."""
        return self.task.logits(self.teacher, batch)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        distill = distilled(self.task, kl, student, self.teach(batch), batch, self.temperature)
        return Losses(distill + penalties(model), distill.new_zeros(()), distill, student.detach())
