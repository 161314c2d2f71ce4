"""QKD: quantization-aware knowledge distillation (Kim et al. 2019, arXiv 1911.12491), in three phases.

    self-studying   L = H(y, p_S)
    co-studying     L = H(y, p_S) + T^2 KL(p_T || p_S)  +  H(y, p_T) + T^2 KL(p_S || p_T), teacher and student learn
    tutoring        L = H(y, p_S) + T^2 KL(p_T || p_S), the teacher fixed as it has become

p = softmax(z / T) in the KL terms; neither side's KL gives the other one gradient. Known from a re-implementation, with
T = 2; the phases' lengths are open, thirds of the calls are ours.
"""

import copy
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
    penalties,
)
from spequant.methods.losses import kl
from spequant.methods.tasks import Classification, Task


class QKD(CountsCalls):
    """teacher: the float network, of which a copy learns in the second phase: give `trained`'s parameters to the
    optimizer. steps: calls in all, 1 or more, of which each part of an accumulated batch is one. shares: of `steps`
    that self-studying and co-studying take, each 0 or more, together 1 at most; tutoring has the rest. temperature:
    above 0.

    (model, batch) -> Losses: logits of both networks (batch, classes), or (batch, parts, classes), as `task` makes
    them; `total`, `task` and `distill` 0-dim, in nats, means over samples. `distill` is T^2 KL(p_T || p_S), 0 in
    self-studying; `total` has the teacher's own terms in co-studying. ValueError: steps, shares or temperature out of
    range.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """QKD: studying alone, together with the teacher, then with the teacher fixed."""

        temperature: float = 2.0
        """T"""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)

        def build(self, start: Start) -> "QKD":
            return QKD(self.teacher_of(start), steps=start.steps, temperature=self.temperature, task=start.task)

        @property
        def fixed_teachers(self) -> tuple[TaughtSettings, ...]:
            return ()  # it learns

    def __init__(
        self,
        teacher: nn.Module,
        *,
        steps: int,
        shares: tuple[float, float] = (1 / 3, 1 / 3),
        temperature: float = 2.0,
        task: Task | None = None,
    ):
        check_steps(steps)
        check_temperature(temperature)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"shares is {shares!r}; expected two numbers of 0 or more, 1 in all at most")
        self.trained = copy.deepcopy(teacher).eval()
        self.alone, self.together = round(shares[0] * steps), round(sum(shares) * steps)
        self.temperature, self.task = float(temperature), task or Classification()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        step, t = self.step, self.temperature
        self.step += 1
        student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        if step < self.alone:
            return Losses(task + penalties(model), task, task.new_zeros(()), student.detach())
        learns = step < self.together
        self.trained.train(learns)
        with torch.set_grad_enabled(learns):
            teacher = self.task.logits(self.trained, batch)
        distill = kl(student, teacher.detach(), t)
        total = task + distill + penalties(model)
        if learns:
            total = total + self.task.loss(teacher, batch) + kl(teacher, student.detach(), t)
        return Losses(total, task, distill, student.detach())
