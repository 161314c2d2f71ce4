"""QKD: quantization-aware knowledge distillation (Kim et al. 2019, arXiv 1911.12491), in three phases.

    self-studying   L = H(y, p_S)
    co-studying     L = H(y, p_S) + T^2 KL(p_T || p_S)  +  H(y, p_T) + T^2 KL(p_S || p_T), teacher and student learn
    tutoring        L = H(y, p_S) + T^2 KL(p_T || p_S), the teacher stays as it is after co-studying

| symbol | here |
|---|---|
| p_S, p_T = softmax(z / T) in the KL terms: student, teacher | `student`, `teacher`, `temperature` |

In each KL term only one side gets gradient: the student in KL(p_T || p_S), the teacher in KL(p_S || p_T). We know the
method from a re-implementation, which has T = 2. It leaves the lengths of the phases open; a third of the calls each is
ours.
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
from spequant.methods.tasks import Classification, Task, distilled


class QKD(CountsCalls):
    """QKD: the student learns without the teacher, then together with it, then from the fixed teacher.

    `Losses.distill` is T^2 KL(p_T || p_S), or 0 in self-studying. `Losses.total` includes the terms of the teacher in
    co-studying. Losses are in nats, means over samples.

    Args:
        teacher: The float network; a copy of it, `trained`, learns in co-studying, so that the optimizer needs the
            parameters of `trained`.
        steps: Calls of the method in the whole training, 1 or more; each part of an accumulated batch is a call.
        shares: Shares of `steps` for self-studying and co-studying, each 0 or more, their sum at most 1; the rest is
            for tutoring.
        temperature: T, above 0.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range.

    References:
        Kim et al. 2019, arXiv 1911.12491.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """QKD: the student learns without the teacher, then together with it, then from the fixed teacher."""

        temperature: float = 2.0
        """T, the temperature of the softmax"""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)

        def build(self, start: Start) -> "QKD":
            return QKD(self.teacher_of(start), steps=start.steps, temperature=self.temperature, task=start.task)

        @property
        def fixed_teachers(self) -> tuple[TaughtSettings, ...]:
            return ()  # the teacher learns

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
            raise ValueError(f"shares is {shares!r}; expected two numbers of 0 or more, whose sum is at most 1")
        self.trained = copy.deepcopy(teacher).eval()
        self.self_studying_end, self.co_studying_end = round(shares[0] * steps), round(sum(shares) * steps)
        self.temperature, self.task = float(temperature), task or Classification()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        step, t = self.step, self.temperature
        self.step += 1
        student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        if step < self.self_studying_end:
            return Losses(task + penalties(model), task, task.new_zeros(()), student.detach())
        learns = step < self.co_studying_end
        self.trained.train(learns)
        with torch.set_grad_enabled(learns):
            teacher = self.task.logits(self.trained, batch)
        distill = distilled(self.task, kl, student, teacher.detach(), batch, t)
        total = task + distill + penalties(model)
        if learns:
            reverse = distilled(self.task, kl, teacher, student.detach(), batch, t)
            total = total + self.task.loss(teacher, batch) + reverse
        return Losses(total, task, distill, student.detach())
