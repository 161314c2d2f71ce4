"""What a batch means: a task says how the model makes logits of it and what the loss on its labels is."""

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Task(Protocol):
    def logits(self, model: nn.Module, batch: Any) -> Tensor: ...

    def loss(self, logits: Tensor, batch: Any) -> Tensor: ...


class Classification:
    """Batches (inputs, labels); labels int64 (batch,), or soft (batch, classes) as mixup makes them."""

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """(batch, classes)."""
        return model(batch[0])

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Cross-entropy in fp32, 0-dim."""
        return F.cross_entropy(logits.float(), batch[1])
