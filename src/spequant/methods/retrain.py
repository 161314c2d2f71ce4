"""Retrain: the baseline without a teacher, which starts from float weights.

    L = CE(y, z_S)

| symbol | here |
|---|---|
| z_S: logits of the quantized network | `logits` |
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from spequant.methods.base import Losses, MethodSettings, Start, penalties
from spequant.methods.tasks import Classification, Task


class Retrain:
    """Training of the quantized network on the labels, without a teacher; `Losses.distill` is 0.

    Args:
        task: Makes logits and the loss on the labels; None: classification.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Retrain: training on the labels, without a teacher."""

        def build(self, start: Start) -> "Retrain":
            return Retrain(task=start.task)

    def __init__(self, *, task: Task | None = None):
        self.task = task or Classification()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        logits = self.task.logits(model, batch)
        task = self.task.loss(logits, batch)
        return Losses(task + penalties(model), task, task.new_zeros(()), logits.detach())
