"""BWRF: a float partner whose blocks are replaced by the low-bit ones, one after another (2024, arXiv 2412.15846).

    L = H(y, p_S) + H(y, p_M) + lambda T^2 [KL(p_F || p_S) + KL(p_M || p_S)],   p = softmax(z / T) in the KL terms

| symbol | here |
|---|---|
| p_F: the float network's, frozen | `teacher` |
| p_M: its with the first k stages replaced by the student's, k = 1 .. n - 1 in turn, one a call | `replaced` |
| T, lambda | `temperature`, `weight` |

Only the abstract is known here: the form of the loss and the order of k are ours. Through the float stages behind them,
the low-bit stages get the gradient that a float network would give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spequant.calibration.batch_norm import batch_norm_untracked
from spequant.methods.base import (
    CountsCalls,
    Losses,
    Start,
    TaughtSettings,
    check_temperature,
    check_weight,
    frozen,
    penalties,
)
from spequant.methods.losses import kl
from spequant.methods.parts import given_stages, part_of, replaced
from spequant.methods.tasks import Classification, Task


class BlockReplacement(CountsCalls):
    """teacher: the float network, copied and frozen. stages: modules that follow one another, of the same names in
    student and teacher; None: found (`parts.stages_of`)."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """BWRF: blocks of the float network are replaced by the low-bit ones."""

        temperature: float = 1.0
        """T"""
        weight: float = 1.0
        """lambda, of the distillation loss"""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)
            check_weight(self.weight, "weight")

        def build(self, start: Start) -> "BlockReplacement":
            teacher = self.teacher_of(start)
            return BlockReplacement(teacher, temperature=self.temperature, weight=self.weight, task=start.task)

    def __init__(
        self,
        teacher: nn.Module,
        *,
        stages: Sequence[str] | None = None,
        temperature: float = 1.0,
        weight: float = 1.0,
        task: Task | None = None,
    ):
        check_temperature(temperature)
        check_weight(weight, "weight")
        self.teacher = frozen(teacher)
        self.stages = given_stages(self.teacher, stages)
        self.temperature, self.weight, self.task = float(temperature), float(weight), task or Classification()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        count = 1 + self.step % (len(self.stages) - 1)
        self.step += 1
        with torch.no_grad():
            whole = self.task.logits(self.teacher, batch)
        student = self.task.logits(model, batch)
        own = {name: part_of(model, name) for name in self.stages[:count]}
        with batch_norm_untracked(model), replaced(self.teacher, own) as mixture:
            mixed = self.task.logits(mixture, batch)
        task, t = self.task.loss(student, batch), self.temperature
        distill = kl(student, whole, t) + kl(student, mixed.detach(), t)
        total = task + self.task.loss(mixed, batch) + self.weight * distill + penalties(model)
        return Losses(total, task, distill, student.detach())
