"""BWRF: a float network whose blocks are replaced by the low-bit ones, one after another (2024, arXiv 2412.15846).

    L = H(y, p_S) + H(y, p_M) + lambda T^2 [KL(p_F || p_S) + KL(p_M || p_S)],   p = softmax(z / T) in the KL terms

| symbol | here |
|---|---|
| p_F: of the float network, which is frozen | `teacher` |
| p_M: of the float network with its first k of n stages replaced by the student's | `replaced` |
| T, lambda | `temperature`, `weight` |

k is 1 .. n - 1 in turn, one value per call. We had only the abstract: the form of the loss and the order of k are ours.
The low-bit stages get their gradient through the float stages behind them, as in a float network.
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
from spequant.methods.parts import part_of, replaced, resolve_stages
from spequant.methods.tasks import Classification, Detection, Task, check_task, distilled


class BlockReplacement(CountsCalls):
    """BWRF: the stages of the student also learn as parts of the float network.

    `Losses.distill` is the sum of both KL terms, with T^2, before lambda.

    Args:
        teacher: The float network, which is copied and frozen.
        stages: Names of two modules or more that follow one another, the same in student and teacher; None:
            `parts.stages_of(teacher)`.
        temperature: T, above 0.
        weight: lambda, 0 or more.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range, or `stages` names fewer than two modules or a module that is missing.

    References:
        arXiv 2412.15846 (2024).
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """BWRF: blocks of the float network are replaced by the low-bit ones."""

        temperature: float = 1.0
        """T, the temperature of the softmax"""
        weight: float = 1.0
        """lambda, the weight of the distillation loss"""

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
        self.temperature, self.weight, self.task = float(temperature), float(weight), task or Classification()
        check_task(self.task, (Detection,), "BlockReplacement", "a detector has no stages that follow one another")
        self.teacher = frozen(teacher)
        self.stages = resolve_stages(self.teacher, stages)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        count = 1 + self.step % (len(self.stages) - 1)
        self.step += 1
        with torch.no_grad():
            teacher = self.task.logits(self.teacher, batch)
        student = self.task.logits(model, batch)
        low_bit_stages = {name: part_of(model, name) for name in self.stages[:count]}
        with batch_norm_untracked(model), replaced(self.teacher, low_bit_stages) as mixture:
            mixed = self.task.logits(mixture, batch)
        task, t = self.task.loss(student, batch), self.temperature
        targets = teacher, mixed.detach()
        distill = torch.stack([distilled(self.task, kl, student, z, batch, t) for z in targets]).sum()
        total = task + self.task.loss(mixed, batch) + self.weight * distill + penalties(model)
        return Losses(total, task, distill, student.detach())
