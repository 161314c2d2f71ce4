"""What a batch means: a task says how the model makes logits of it and what the loss on its labels is."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Task(Protocol):
    def logits(self, model: nn.Module, batch: Any) -> Tensor: ...

    def loss(self, logits: Tensor, batch: Any) -> Tensor: ...


class Classification:
    """Batches (inputs, labels); labels int64 (batch,), or soft (batch, classes) as mixup makes them.

    output: which part of what the model returns are the logits: a key or index; None: the tensor itself, or its
      `logits` (a dict's, a named tuple's or an object's, as torchvision's GoogLeNet and transformers return them).
    """

    def __init__(self, output: str | int | None = None):
        self.output = output

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """(batch, classes). TypeError where the model returns something else, or nothing under `output`."""
        found = model(batch[0])
        if self.output is not None:
            logits = _part(found, self.output)
        else:
            logits = found if isinstance(found, Tensor) else _part(found, "logits")
        if isinstance(logits, Tensor):
            return logits
        has = f" with {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
        raise TypeError(
            f"the model returned {type(found).__name__}{has}, and output is {self.output!r}; expected a tensor of "
            "logits: say where it is, Classification(output=0) or output='key', or give the method a task of your own"
        )

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Cross-entropy in fp32, 0-dim."""
        return F.cross_entropy(logits.float(), batch[1])


def _part(found: Any, output: str | int) -> Any:
    """What `found` holds under a key, an index or a name; None where it holds nothing there."""
    if isinstance(found, Mapping):
        return found.get(output)
    if isinstance(output, str):
        return getattr(found, output, None)
    return found[output] if isinstance(found, tuple | list) and output < len(found) else None
