"""One class for each part of a sample, such as a pixel or a token; the base of those tasks."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from spequant.methods.losses import DistillLoss
from spequant.methods.tasks.figures import class_counts, class_figures
from spequant.methods.tasks.task import Sums, cross_entropy_without, distilled_where, labels_or_none


class Dense(ABC):
    """One class per part of a sample. Logits are (batch, *parts, classes), and labels (batch, *parts).

    Args:
        output: Key or index of the logits in the output of the model.
        ignored: The label of parts that are left out.
    """

    FIGURES: ClassVar[dict[str, str]]
    """which figures of `class_figures` are reported, and what they are called"""

    def __init__(self, output: str | int | None, ignored: int):
        self.output, self.ignored = output, ignored

    @abstractmethod
    def labels(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the labels as int64 (batch, *parts).

        Raises:
            ValueError: They are no classes of these logits.
        """

    def kept(self, batch: Any) -> Tensor | None:
        """Return which parts a teacher is learned from, bool (batch, *parts); None: all."""
        labels = labels_or_none(batch)
        return None if labels is None else labels != self.ignored

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the mean cross-entropy over parts in fp32, 0-dim, in nats; 0 if all are left out.

        Raises:
            ValueError: The labels are no classes of the logits.
        """
        return cross_entropy_without(logits, self.labels(logits, batch), self.ignored)

    def distill(self, loss: DistillLoss, student: Tensor, teacher: Tensor, batch: Any, temperature: float) -> Tensor:
        """Return `loss` of the parts that are not left out, 0-dim; see `distilled`."""
        return distilled_where(self.kept(batch), loss, student, teacher, temperature)

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the sum over samples of the share of parts with the right class, 0-dim."""
        labels = self.labels(logits, batch)
        keep = labels != self.ignored
        right = ((logits.argmax(-1) == labels) & keep).flatten(1).sum(1)
        return (right / keep.flatten(1).sum(1).clamp_min(1)).sum()

    def meter(self) -> Sums:
        """Return a meter of the task's figures, in percent."""

        def count(logits: Tensor, batch: Any) -> Tensor:
            return class_counts(logits, self.labels(logits, batch), self.ignored)

        return Sums(count, lambda sums: class_figures(sums, **self.FIGURES))
