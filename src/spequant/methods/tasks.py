"""Tasks: how a model gets from a batch to logits, and the loss of these logits on the labels of the batch."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Task(Protocol):
    """The part of a task that methods use."""

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Run `model` on the inputs of `batch`, and return logits with the classes last."""
        ...

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the loss on the labels of `batch`, 0-dim, the mean over samples."""
        ...


class Counted(Task, Protocol):
    """A task that also counts right answers, for training loops and evaluation."""

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the number of samples whose answer is right, 0-dim."""
        ...


SUM_TOLERANCE = 0.01
"""Largest deviation from 1 of the sum of a sample's soft labels, which can be in half precision."""
OTHER_TASKS = (
    "For regression, several labels per sample or a single logit, give the method a task of your own, with "
    "logits(model, batch) and loss(logits, batch), and a distillation loss that suits it"
)


class Classification:
    """Classification with one class per sample.

    A batch is (inputs, labels), or a dict with "labels" and the keyword arguments of the network. Labels are int64
    (batch,), or soft labels as mixup makes them: floats (batch, classes), shares of the classes that sum to 1. Floats
    with another meaning (regression, several labels per sample, one logit) need another task.

    Args:
        output: Key or index of the logits in the output of the model. None: the output is the tensor of logits, or has
            them as `logits` (in a dict, named tuple or object, like torchvision's GoogLeNet and transformers).
    """

    LABELS = "labels"

    def __init__(self, output: str | int | None = None):
        self.output = output
        self.soft_labels_checked = False

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Run `model` on a batch.

        Args:
            model: A network for classification.
            batch: As described for the class.

        Returns:
            Logits (batch, classes).

        Raises:
            TypeError: The model returns no tensor, or none under `output`.
            ValueError: The logits have another shape, e.g. dense predictions, or only one class.
        """
        if isinstance(batch, Mapping):
            output = model(**{name: value for name, value in batch.items() if name != self.LABELS})
        else:
            output = model(batch[0])
        if self.output is not None:
            logits = _part(output, self.output)
        else:
            logits = output if isinstance(output, Tensor) else _part(output, "logits")
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
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise TypeError(
            f"the model returned {type(output).__name__}{keys}, and output is {self.output!r}; expected a tensor of "
            "logits: say where it is, Classification(output=0) or output='key', or give the method a task of your own"
        )

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the cross-entropy in fp32, 0-dim, in nats.

        Whether soft labels sum to 1 is checked for every batch on a CPU, and once on a GPU, which waits for each check.

        Args:
            logits: (batch, classes).
            batch: The batch with the labels.

        Raises:
            ValueError: The labels are neither classes nor shares of the classes.
        """
        labels = self._labels(batch)
        self._check(logits, labels)
        return F.cross_entropy(logits.float(), labels)

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the number of samples whose largest logit is at the label (soft: the largest label), 0-dim."""
        labels = self._labels(batch)
        labels = labels.argmax(-1) if labels.is_floating_point() else labels
        return (logits.argmax(-1) == labels).sum()

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        shape = tuple(labels.shape)
        if not labels.is_floating_point():
            if labels.dtype == torch.bool or shape != logits.shape[:1]:
                raise ValueError(
                    f"labels are {labels.dtype} of shape {shape}; expected int64 {tuple(logits.shape[:1])}, one "
                    f"class per sample, or floats {tuple(logits.shape)}, shares of the classes. {OTHER_TASKS}"
                )
            return
        if shape != logits.shape:
            raise ValueError(
                f"labels are floats of shape {shape}; expected shares of the classes, {tuple(logits.shape)}, or "
                f"classes, int64 {tuple(logits.shape[:1])}. {OTHER_TASKS}"
            )
        if torch.compiler.is_compiling() or (self.soft_labels_checked and labels.device.type != "cpu"):
            return
        self.soft_labels_checked = True
        sums = labels.detach().float().sum(-1)
        if not (bool((labels >= 0).all()) and bool(((sums - 1).abs() < SUM_TOLERANCE).all())):
            raise ValueError(
                f"labels are floats that do not sum to 1 per sample (sums from {float(sums.min()):.4g} to "
                f"{float(sums.max()):.4g}, least value {float(labels.min()):.4g}); expected shares of the classes. "
                f"{OTHER_TASKS}"
            )

    def _labels(self, batch: Any) -> Tensor:
        return batch[self.LABELS] if isinstance(batch, Mapping) else batch[1]


class SpanExtraction:
    """Question answering: where in a sequence the answer starts and ends.

    A batch is a dict of tensors: the keyword arguments of the network, (batch, length) each, including
    `attention_mask` (1: token, 0: padding), and the labels `start_positions` and `end_positions`, int64 (batch,). A
    position outside the sequence is left out of the loss, as in transformers. The network returns `start_logits` and
    `end_logits`, (batch, length) each.
    """

    LABELS = ("start_positions", "end_positions")

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Run `model` on a batch.

        Args:
            model: A network for question answering.
            batch: As described for the class.

        Returns:
            Logits (batch, 2, length) of start and end, each over all positions; -inf at padding.

        Raises:
            TypeError: The model does not return `start_logits` and `end_logits`.
        """
        output = model(**{name: value for name, value in batch.items() if name not in self.LABELS})
        ends = [_part(output, name) for name in ("start_logits", "end_logits")]
        if not all(isinstance(end, Tensor) for end in ends):
            raise TypeError(
                f"the model returned {type(output).__name__} without start_logits and end_logits; expected a network "
                "for question answering, such as transformers' AutoModelForQuestionAnswering"
            )
        padding = batch["attention_mask"].unsqueeze(1) == 0
        return torch.stack(ends, dim=1).masked_fill(padding, float("-inf"))

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the mean of the cross-entropies of start and end in fp32, 0-dim, in nats."""
        return F.cross_entropy(logits.float().flatten(0, 1), self._positions(logits, batch).flatten())

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the number of sequences whose start and end both have the largest logit, 0-dim."""
        return (logits.argmax(-1) == self._positions(logits, batch)).all(-1).sum()

    def _positions(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the labels (batch, 2), with -100 for positions that the loss leaves out."""
        positions = torch.stack([batch[name] for name in self.LABELS], dim=1)
        return torch.where((positions >= 0) & (positions < logits.shape[-1]), positions, -100)


def _part(output: Any, key: str | int) -> Any:
    """Return the part of a model's output under a key, an attribute's name or an index; None if there is none."""
    if isinstance(output, Mapping):
        return output.get(key)
    if isinstance(key, str):
        return getattr(output, key, None)
    return output[key] if isinstance(output, tuple | list) and key < len(output) else None
