"""What a batch means: a task says how the model makes logits of it and what the loss on its labels is."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Task(Protocol):
    """What a method asks of a task."""

    def logits(self, model: nn.Module, batch: Any) -> Tensor: ...

    def loss(self, logits: Tensor, batch: Any) -> Tensor: ...


class Counted(Task, Protocol):
    """What training loops and evaluation ask, who count."""

    def hits(self, logits: Tensor, batch: Any) -> Tensor: ...


SUM_TOLERANCE = 0.01  # of soft labels, which may be half precision
OTHER_TASKS = (
    "For regression, several labels a sample or a single logit give the method a task of your own, with logits(model, "
    "batch) and loss(logits, batch), and a loss between student and teacher that suits it"
)


class Classification:
    """Batches (inputs, labels), or dicts of what the network takes as keywords, with "labels" among it; labels int64
    (batch,), or soft (batch, classes) as mixup makes them: shares of the classes, which sum to 1.

    What else floats may mean (regression, several labels a sample, one logit) needs a task of its own.

    output: which part of what the model returns are the logits: a key or index; None: the tensor itself, or its
      `logits` (a dict's, a named tuple's or an object's, as torchvision's GoogLeNet and transformers return them).
    """

    LABELS = "labels"

    def __init__(self, output: str | int | None = None):
        self.output = output
        self.looked = False  # at a batch of soft labels

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """(batch, classes). TypeError where the model returns something else, or nothing under `output`. ValueError:
        logits of another shape, such as those of dense predictions, whose classes are not last."""
        if isinstance(batch, Mapping):
            found = model(**{name: value for name, value in batch.items() if name != self.LABELS})
        else:
            found = model(batch[0])
        if self.output is not None:
            logits = _part(found, self.output)
        else:
            logits = found if isinstance(found, Tensor) else _part(found, "logits")
        if isinstance(logits, Tensor):
            if logits.dim() != 2:
                raise ValueError(
                    f"the model returned logits of shape {tuple(logits.shape)}; expected (batch, classes): give the "
                    "method a task of your own, whose logits have the classes last"
                )
            if logits.shape[1] == 1:
                raise ValueError(
                    f"the model returned logits of shape {tuple(logits.shape)}, one class, whose cross-entropy is 0 "
                    f"whatever it says; expected two classes or more. {OTHER_TASKS}"
                )
            return logits
        has = f" with {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
        raise TypeError(
            f"the model returned {type(found).__name__}{has}, and output is {self.output!r}; expected a tensor of "
            "logits: say where it is, Classification(output=0) or output='key', or give the method a task of your own"
        )

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Cross-entropy in fp32, 0-dim. ValueError: labels that are neither classes nor shares of classes; whether
        shares sum to 1 is looked at on a CPU always, and on a GPU, which would have to wait, once."""
        labels = self._labels(batch)
        self._check(logits, labels)
        return F.cross_entropy(logits.float(), labels)

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """How many samples have their label (soft ones: the largest) as arg-max; 0-dim."""
        labels = self._labels(batch)
        labels = labels.argmax(-1) if labels.is_floating_point() else labels
        return (logits.argmax(-1) == labels).sum()

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        shape = tuple(labels.shape)
        if not labels.is_floating_point():
            if labels.dtype == torch.bool or shape != logits.shape[:1]:
                raise ValueError(
                    f"labels are {labels.dtype} of shape {shape}; expected int64 {tuple(logits.shape[:1])}, a class "
                    f"each, or floats {tuple(logits.shape)}, shares of the classes. {OTHER_TASKS}"
                )
            return
        if shape != logits.shape:
            raise ValueError(
                f"labels are floats of shape {shape}; expected shares of the classes, {tuple(logits.shape)}, or "
                f"classes, int64 {tuple(logits.shape[:1])}. {OTHER_TASKS}"
            )
        if torch.compiler.is_compiling() or (self.looked and labels.device.type != "cpu"):
            return
        self.looked = True
        sums = labels.detach().float().sum(-1)
        if not (bool((labels >= 0).all()) and bool(((sums - 1).abs() < SUM_TOLERANCE).all())):
            raise ValueError(
                f"labels are floats that do not sum to 1 a row (sums from {float(sums.min()):.4g} to "
                f"{float(sums.max()):.4g}, least value {float(labels.min()):.4g}); expected shares of the classes. "
                f"{OTHER_TASKS}"
            )

    def _labels(self, batch: Any) -> Tensor:
        return batch[self.LABELS] if isinstance(batch, Mapping) else batch[1]


class SpanExtraction:
    """Question answering: where in a sequence an answer starts and ends.

    Batches are dicts of tensors (batch, length): what the network takes as keywords, `attention_mask` (1: a token, 0:
    padding) among it, and with it `start_positions` and `end_positions`, int64 (batch,). A position past the end counts
    for nothing, as in transformers. The network returns `start_logits` and `end_logits`, (batch, length) each.
    """

    LABELS = ("start_positions", "end_positions")

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """(batch, 2, length), start and end apart, each over all positions; padding is -inf, probability 0."""
        found = model(**{name: value for name, value in batch.items() if name not in self.LABELS})
        ends = [_part(found, name) for name in ("start_logits", "end_logits")]
        if not all(isinstance(end, Tensor) for end in ends):
            raise TypeError(
                f"the model returned {type(found).__name__} without start_logits and end_logits; expected a network "
                "for question answering, such as transformers' AutoModelForQuestionAnswering"
            )
        padding = batch["attention_mask"].unsqueeze(1) == 0
        return torch.stack(ends, dim=1).masked_fill(padding, float("-inf"))

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Mean of the cross-entropies of start and end, in fp32, 0-dim."""
        return F.cross_entropy(logits.float().flatten(0, 1), self._positions(logits, batch).flatten())

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """How many sequences have both ends as arg-max; 0-dim."""
        return (logits.argmax(-1) == self._positions(logits, batch)).all(-1).sum()

    def _positions(self, logits: Tensor, batch: Any) -> Tensor:
        """(batch, 2), what is to be ignored as -100."""
        positions = torch.stack([batch[name] for name in self.LABELS], dim=1)
        return torch.where((positions >= 0) & (positions < logits.shape[-1]), positions, -100)


def _part(found: Any, output: str | int) -> Any:
    """What `found` holds under a key, an index or a name; None where it holds nothing there."""
    if isinstance(found, Mapping):
        return found.get(output)
    if isinstance(output, str):
        return getattr(found, output, None)
    return found[output] if isinstance(found, tuple | list) and output < len(found) else None
