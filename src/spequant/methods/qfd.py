"""QFD: quantized feature distillation (Zhu et al. 2023, arXiv 2307.10638).

    L = H(y, p_S) + lambda MSE(f_T^Q, f_S),   lambda = .5

| symbol | here |
|---|---|
| f_S, f_T: penultimate feature, the head's input | of the student before its own quantizer; of the float teacher |
| f_T^Q: that of the teacher on a few bits | `rounded(f_T, bits)` |

Of sequences the mean is over tokens; padding is left out. The paper trains the teacher's feature quantizer; open here,
and ours: the grid spans each batch's own range.
"""

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
from spequant.methods.parts import Recorder, rounded, tokens
from spequant.methods.tasks import Classification, Task
from spequant.networks import head_of
from spequant.quantizers.base import check_bits


class QFD:
    """teacher: the float network, copied and frozen. bits: of its feature, 2 to 8. head: the layer whose input is the
    feature; None: the last one. `Losses.distill` is the MSE."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """QFD: the teacher's feature on a few bits."""

        bits: int = 4
        """of the teacher's feature, 2 to 8"""
        weight: float = 0.5
        """lambda, of the distillation loss"""

        def __post_init__(self) -> None:
            check_bits(self.bits, "bits", both_signs=True)
            check_weight(self.weight, "weight")

        def build(self, start: Start) -> "QFD":
            return QFD(self.teacher_of(start), bits=self.bits, weight=self.weight, task=start.task)

    def __init__(
        self,
        teacher: nn.Module,
        *,
        bits: int = 4,
        weight: float = 0.5,
        head: str | None = None,
        task: Task | None = None,
    ):
        check_bits(bits, "bits", both_signs=True)
        check_weight(weight, "weight")
        self.teacher = frozen(teacher)
        self.bits, self.weight, self.task = bits, float(weight), task or Classification()
        self.head = head_of(self.teacher) if head is None else head
        self.student_feature = Recorder([self.head], inputs=True)
        self.teacher_feature = Recorder([self.head], inputs=True)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        with torch.no_grad(), self.teacher_feature.on(self.teacher) as found:
            self.task.logits(self.teacher, batch)
        feature = found[self.head]
        mask = tokens(feature, batch)
        target = rounded(feature if mask is None else feature * mask, self.bits).float()
        with self.student_feature.on(model) as found:
            student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        apart = F.mse_loss(found[self.head].float(), target, reduction="none")
        distill = apart.mean() if mask is None else (apart * mask).sum() / (mask.sum() * apart.shape[-1])
        return Losses(task + self.weight * distill + penalties(model), task, distill, student.detach())
