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
        """(batch, classes). TypeError where the model returns something else than a tensor."""
        logits = model(batch[0])
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"the model returned {type(logits).__name__}; expected a tensor of logits: give the method a task of "
                "your own, whose logits(model, batch) takes it from there"
            )
        return logits

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Cross-entropy in fp32, 0-dim."""
        return F.cross_entropy(logits.float(), batch[1])
