"""QFD: quantized feature distillation (Zhu et al. 2023, arXiv 2307.10638).

    L = H(y, p_S) + lambda MSE(f_T^Q, f_S),   lambda = .5

| symbol | here |
|---|---|
| f_S: penultimate feature of the student, the input of its head before quantization | `student_feature` |
| f_T: penultimate feature of the float teacher | `teacher_feature` |
| f_T^Q: f_T at a few bits | `rounded(f_T, bits)` |

For sequences, the mean is over tokens, without padding. The paper trains the quantizer of the teacher's feature; here
the grid spans the range of each batch, which is ours.
"""

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
from spequant.methods.losses import squared_error
from spequant.methods.parts import Recorder, rounded, tokens
from spequant.methods.tasks import Classification, Detection, Task, check_task
from spequant.networks import head_of
from spequant.quantizers.base import check_bits


class QFD:
    """QFD: the student's feature learns the teacher's feature, quantized to a few bits.

    `Losses.distill` is the MSE, before lambda.

    Args:
        teacher: The float network, which is copied and frozen.
        bits: Bits of the teacher's feature, 2 to 8.
        weight: lambda, 0 or more.
        head: Name of the layer whose input is the feature; None: the last layer.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range.

    References:
        Zhu et al. 2023, arXiv 2307.10638.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """QFD: the student learns the teacher's feature, quantized to a few bits."""

        bits: int = 4
        """bits of the teacher's feature, 2 to 8"""
        weight: float = 0.5
        """lambda, the weight of the distillation loss"""

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
        self.bits, self.weight, self.task = bits, float(weight), task or Classification()
        check_task(self.task, (Detection,), "QFD", "the features of a detector are of other regions per network")
        self.teacher = frozen(teacher)
        self.head = head_of(self.teacher) if head is None else head
        self.student_feature = Recorder([self.head], inputs=True)
        self.teacher_feature = Recorder([self.head], inputs=True)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        with torch.no_grad(), self.teacher_feature.on(self.teacher) as teacher_inputs:
            self.task.logits(self.teacher, batch)
        feature = teacher_inputs[self.head]
        mask = tokens(feature, batch)
        target = rounded(feature if mask is None else feature * mask, self.bits).float()
        with self.student_feature.on(model) as student_inputs:
            student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        distill = squared_error(student_inputs[self.head], target, mask)
        return Losses(task + self.weight * distill + penalties(model), task, distill, student.detach())
