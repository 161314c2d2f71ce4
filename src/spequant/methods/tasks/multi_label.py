"""Several labels per sample, each of which holds or does not; also one logit for yes or no."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.methods.losses import DistillLoss, ensemble
from spequant.methods.tasks.task import Sums, labels_of, output_of, tensor_in


class MultiLabel:
    """Several labels per sample, each with a probability of its own: sigmoid(z).

    A batch is (inputs, labels), or a dict with "labels" and the keyword arguments of the network. Labels are bool, int
    or floats from 0 to 1, (batch, labels): 1 where a label holds (multi-hot). The network returns logits
    (batch, labels). With one label both may be (batch,).

    The loss on the labels is the binary cross-entropy, the mean over samples and labels. A teacher is learned from by
    the two probabilities of each label: the loss of the method (cosine, kl) gets logits (batch, labels, 2), 0 for "no"
    and z for "yes", whose softmax is (1 - sigmoid(z), sigmoid(z)), and is a mean over labels, too. Figures are F1 in
    percent, the mean over labels that occur in labels or answers (z > 0), and the share of samples of which every label
    is right.

    Args:
        output: Key or index of the logits in the output of the model; None: the output, or `logits` in it.
        positive_weight: Weight of the labels that hold, above 0: a number, or one per label, e.g. the number of samples
            without the label for each with it.

    Raises:
        ValueError: `positive_weight` is not above 0.
    """

    def __init__(self, output: str | int | None = None, *, positive_weight: float | Sequence[float] = 1.0):
        self.output = output
        self.positive_weight = torch.as_tensor(positive_weight, dtype=torch.float32)
        if not bool(((self.positive_weight > 0) & self.positive_weight.isfinite()).all()):
            raise ValueError(f"positive_weight is {positive_weight!r}; expected finite numbers above 0")

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Run `model` on a batch.

        Args:
            model: A network with one logit per label.
            batch: As described for the class.

        Returns:
            Logits (batch, labels).

        Raises:
            TypeError: The model returns no tensor, or none under `output`.
            ValueError: The logits have another shape.
        """
        logits = tensor_in(output_of(model, batch), self.output, self)
        logits = logits.unsqueeze(1) if logits.dim() == 1 else logits
        if logits.dim() != 2:
            raise ValueError(
                f"the model returned logits of shape {tuple(logits.shape)}; expected (batch, labels) for MultiLabel"
            )
        return logits

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the binary cross-entropy in fp32, 0-dim, in nats, the mean over samples and labels.

        Raises:
            ValueError: The labels have another shape than the logits, or are not from 0 to 1.
        """
        weight = self.positive_weight.to(logits.device)
        if weight.dim() and weight.shape != logits.shape[1:]:
            raise ValueError(
                f"positive_weight has shape {tuple(weight.shape)}; expected ({logits.shape[1]},), one per label"
            )
        return F.binary_cross_entropy_with_logits(logits.float(), self._labels(logits, batch), pos_weight=weight)

    def distill(self, loss: DistillLoss, student: Tensor, teacher: Tensor, batch: Any, temperature: float) -> Tensor:
        """Return `loss` of the two probabilities of each label, 0-dim; see `distilled`."""
        return loss(yes_and_no(student), yes_and_no(teacher), temperature)

    def ensemble(self, passes: Sequence[Tensor], temperature: float) -> Tensor:
        """Return logits whose sigmoid at `temperature` is the mean of the sigmoids of `passes`."""
        no, yes = ensemble([yes_and_no(z) for z in passes], temperature).unbind(-1)
        return yes - no

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the number of samples of which every label is right (of soft labels: rounded), 0-dim."""
        return ((logits > 0) == (self._labels(logits, batch) > 0.5)).all(-1).sum()

    def meter(self) -> Sums:
        """Return a meter of `f1` and `accuracy` (samples with every label right), both in percent."""
        return Sums(self._count, _figures)

    def _count(self, logits: Tensor, batch: Any) -> Tensor:
        """Return, flat: per label right yes, answered yes and labelled yes; then samples all right, and samples."""
        answers, labels = logits > 0, self._labels(logits, batch) > 0.5
        right = (answers == labels).all(-1)
        samples = torch.stack([right.sum(), torch.tensor(len(right), device=right.device)])
        f1 = torch.stack([(answers & labels).sum(0), answers.sum(0), labels.sum(0)])
        return torch.cat([f1.flatten(), samples])

    def _labels(self, logits: Tensor, batch: Any) -> Tensor:
        labels = labels_of(batch)
        labels = labels.unsqueeze(1) if labels.dim() == 1 and logits.shape[1] == 1 else labels
        if labels.shape != logits.shape or labels.is_complex():
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected {tuple(logits.shape)}, the shape "
                "of the logits: 1 where a label holds, else 0 (one class per sample, int64 (batch,): Classification)"
            )
        if labels.dtype != torch.bool and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = float(labels.min()), float(labels.max())
            if not 0 <= low <= high <= 1:
                raise ValueError(f"labels run from {low:.4g} to {high:.4g}; expected 0 to 1 (values: Regression)")
        return labels.float()


def yes_and_no(logits: Tensor) -> Tensor:
    """Return logits of two classes, (..., 2), whose softmax is (1 - sigmoid(z), sigmoid(z)); `logits`: z, (...)."""
    return torch.stack([torch.zeros_like(logits), logits], dim=-1)


def _figures(sums: Tensor) -> dict[str, float]:
    right, answers, labels = sums[:-2].view(3, -1)
    occurs = (answers + labels) > 0
    f1 = float((2 * right / (answers + labels))[occurs].mean()) if bool(occurs.any()) else 1.0
    return {"f1": 100 * f1, "accuracy": 100 * float(sums[-2] / sums[-1])}
