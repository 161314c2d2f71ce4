"""Retrain: the baseline without a teacher. L = CE(y, z_S) on the quantized network, from float weights."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from spequant.methods.base import Losses, MethodSettings, Start, penalties
from spequant.methods.tasks import Classification, Task


class Retrain:
    """total = task loss of the quantized network (+ the quantizers' penalties)."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Retrain: no teacher."""

        def build(self, start: Start) -> "Retrain":
            return Retrain(task=start.task)

    def __init__(self, *, task: Task | None = None):
        self.task = task or Classification()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        logits = self.task.logits(model, batch)
        task = self.task.loss(logits, batch)
        return Losses(task + penalties(model), task, task.new_zeros(()), logits.detach())
