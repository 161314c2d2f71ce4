"""Distillation from a separate, frozen teacher (Hinton et al. 2015, arXiv 1503.02531), alone or beside SPEQ.

L = CE(y, z_S) + lambda T^2 D(p_T, p_S),   D: KL or 1 - cos,   p = softmax(z / T)

That the labels keep their whole weight is ours, as in SPEQ: Hinton's sum is (1 - l) CE + l T^2 KL, so that lambda is
l / (1 - l) of his, and the whole 1 / (1 - l) times as large.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
from spequant.methods.tasks import Classification, Task


class Distill:
    """Student: the quantized model; teacher: a copy of `teacher`, frozen, in eval mode.

    loss, temperature, weight: as in SPEQ; `kl` by default.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """Distillation from a float teacher."""

        loss: str = "kl"
        """kl, cosine, or a function of your own: package.module:function or file.py:function"""
        temperature: float = 1.0
        """T"""
        weight: float = 1.0
        """lambda, of the distillation loss"""

        def __post_init__(self) -> None:
            loss_named(self.loss)
            check_temperature(self.temperature)
            check_weight(self.weight, "weight")

        def build(self, start: Start) -> "Distill":
            options = {"loss": loss_named(self.loss), "temperature": self.temperature, "weight": self.weight}
            return Distill(self.teacher_of(start), task=start.task, **options)

    def __init__(
        self,
        teacher: nn.Module,
        *,
        loss: DistillLoss = kl,
        temperature: float = 1.0,
        weight: float = 1.0,
        task: Task | None = None,
    ):
        check_temperature(temperature)
        check_weight(weight, "weight")
        self.teacher = frozen(teacher)
        self.loss, self.temperature, self.weight = loss, float(temperature), float(weight)
        self.task = task or Classification()

    @torch.no_grad()
    def teach(self, model: nn.Module, batch: Any) -> Tensor:
        """The teacher's logits (batch, classes), without gradient."""
        return self.task.logits(self.teacher, batch)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        distill = self.loss(student, self.teach(model, batch), self.temperature)
        return Losses(task + self.weight * distill + penalties(model), task, distill, student.detach())


class SPEQDistill:
    """Both teachers: the network itself at stochastic precision, and a separate one. Their weighted terms add up.

    `Losses.distill` is the sum of both, weights included.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """SPEQ and distillation from a float teacher together."""

        speq: SPEQ.Settings = field(default_factory=SPEQ.Settings)
        distill: Distill.Settings = field(default_factory=Distill.Settings)

        def build(self, start: Start) -> "SPEQDistill":
            return SPEQDistill(self.speq.build(start), self.distill.build(start))

        def check_student(self, act_bits: int | None, *, mixed: bool) -> None:
            self.speq.check_student(act_bits, mixed=mixed)

        @property
        def fixed_teachers(self) -> tuple[TaughtSettings, ...]:
            return self.distill.fixed_teachers

    def __init__(self, speq: SPEQ, distill: Distill):
        self.speq, self.distill = speq, distill

    def state_dict(self) -> dict[str, int]:
        return self.speq.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.speq.load_state_dict(state)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        own, separate = self.speq.teach(model, batch), self.distill.teach(model, batch)
        student = self.speq.task.logits(model, batch)
        task = self.speq.task.loss(student, batch)
        distill = self.speq.weight * self.speq.loss(student, own, self.speq.temperature)
        distill = distill + self.distill.weight * self.distill.loss(student, separate, self.distill.temperature)
        return Losses(task + distill + penalties(model), task, distill, student.detach())
