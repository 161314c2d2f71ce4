"""Distillation from a separate, frozen teacher (Hinton et al. 2015, arXiv 1503.02531), with or without SPEQ.

L = CE(y, z_S) + lambda T^2 D(p_T, p_S),   D: KL or 1 - cos,   p = softmax(z / T)

As in SPEQ, the labels keep their full weight; this is ours. Hinton's loss is (1 - l) CE + l T^2 KL, so lambda
corresponds to l / (1 - l), and the loss here is 1 / (1 - l) times his.

The teacher answers in every step, or has answered before: its answers to the very crops are then the third part of each
batch (`spequant.data.SoftLabels`), after Shen and Xing (FKD, ECCV 2022).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spequant.methods.base import (
    Losses,
    MethodSettings,
    Start,
    TaughtSettings,
    check_temperature,
    check_weight,
    frozen,
    penalties,
)
from spequant.methods.losses import DistillLoss, kl, loss_named
from spequant.methods.speq import SPEQ
from spequant.methods.tasks import Classification, Task, distilled


class Distill:
    """Distillation from a separate float teacher that is frozen.

    Args:
        teacher: The float network, which is copied and frozen, in eval mode. None: each batch is (inputs, labels,
            teacher's logits), as `SoftLabels.batches` yields them.
        loss: (student logits, teacher logits, temperature) -> 0-dim tensor: `kl`, `cosine` or a function of your own.
        temperature: T, above 0.
        weight: lambda, 0 or more.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range; when called, if there is no teacher and a batch has no logits of one.

    References:
        Hinton, Vinyals and Dean 2015, arXiv 1503.02531.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """Distillation from a float teacher."""

        loss: str = "kl"
        """kl, cosine, or a function of your own: package.module:function or file.py:function"""
        temperature: float = 1.0
        """T, the temperature of the softmax"""
        weight: float = 1.0
        """lambda, the weight of the distillation loss"""
        soft_labels: Path | None = None
        """file of the teacher's answers to the very crops, from `spequant soft-labels`, at the same temperature; None:
        the teacher answers in every step"""

        def __post_init__(self) -> None:
            if self.soft_labels is not None and self.teacher is not None:
                raise ValueError(
                    f"teacher is {str(self.teacher)!r}, which has no effect with soft_labels; expected None: its "
                    "answers are in the file"
                )
            loss_named(self.loss)
            check_temperature(self.temperature)
            check_weight(self.weight, "weight")

        def build(self, start: Start) -> "Distill":
            options = {"loss": loss_named(self.loss), "temperature": self.temperature, "weight": self.weight}
            return Distill(None if self.soft_labels else self.teacher_of(start), task=start.task, **options)

        @property
        def fixed_teachers(self) -> tuple[TaughtSettings, ...]:
            return () if self.soft_labels else (self,)

        @property
        def soft_labels_file(self) -> tuple[Path, float] | None:
            return (self.soft_labels, self.temperature) if self.soft_labels else None

    def __init__(
        self,
        teacher: nn.Module | None = None,
        *,
        loss: DistillLoss = kl,
        temperature: float = 1.0,
        weight: float = 1.0,
        task: Task | None = None,
    ):
        check_temperature(temperature)
        check_weight(weight, "weight")
        self.teacher = None if teacher is None else frozen(teacher)
        self.loss, self.temperature, self.weight = loss, float(temperature), float(weight)
        self.task = task or Classification()

    @torch.no_grad()
    def teach(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the teacher's logits, e.g. (batch, classes), without gradient; `model` is not used."""
        if self.teacher is not None:
            return self.task.logits(self.teacher, batch)
        if isinstance(batch, Mapping) or len(batch) != 3:
            raise ValueError(
                f"a batch is {type(batch).__name__} of {len(batch)} and teacher is None; expected (inputs, labels, "
                "teacher's logits), as SoftLabels.batches yields them, or a teacher"
            )
        return batch[2]

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        distill = distilled(self.task, self.loss, student, self.teach(model, batch), batch, self.temperature)
        return Losses(task + self.weight * distill + penalties(model), task, distill, student.detach())


class SPEQDistill:
    """Two teachers: the network itself at stochastic precision (SPEQ), and a separate float network.

    The loss is the task's plus the weighted term of each teacher. `Losses.distill` is the sum of these terms, weights
    included.

    Args:
        speq: The method of the first teacher; its task is used.
        distill: The method of the second teacher.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """SPEQ and distillation from a float teacher together."""

        speq: SPEQ.Settings = field(default_factory=SPEQ.Settings)
        """SPEQ's part"""
        distill: Distill.Settings = field(default_factory=Distill.Settings)
        """the float teacher's part"""

        def build(self, start: Start) -> "SPEQDistill":
            return SPEQDistill(self.speq.build(start), self.distill.build(start))

        def check_student(self, act_bits: int | None, *, mixed: bool) -> None:
            self.speq.check_student(act_bits, mixed=mixed)

        @property
        def fixed_teachers(self) -> tuple[TaughtSettings, ...]:
            return self.distill.fixed_teachers

        @property
        def soft_labels_file(self) -> tuple[Path, float] | None:
            return self.distill.soft_labels_file

    def __init__(self, speq: SPEQ, distill: Distill):
        self.speq, self.distill = speq, distill

    def state_dict(self) -> dict[str, int]:
        return self.speq.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.speq.load_state_dict(state)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        speq_teacher, float_teacher = self.speq.teach(model, batch), self.distill.teach(model, batch)
        student = self.speq.task.logits(model, batch)
        task = self.speq.task.loss(student, batch)
        speq, other = self.speq, self.distill
        distill = speq.weight * distilled(speq.task, speq.loss, student, speq_teacher, batch, speq.temperature)
        term = distilled(speq.task, other.loss, student, float_teacher, batch, other.temperature)
        distill = distill + other.weight * term
        return Losses(task + distill + penalties(model), task, distill, student.detach())
