"""Classification with one class per sample, hard or soft labels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.methods.tasks.task import check_classes, labels_of, output_of, tensor_in

SUM_TOLERANCE = 0.01
"""Largest deviation from 1 of the sum of a sample's soft labels, which can be in half precision."""
IGNORED = -100
"""Label that torch's cross-entropy leaves out."""
OTHER_TASKS = (
    "Other tasks are Regression (values), MultiLabel (several labels per sample, or a single logit), "
    "TokenClassification and Segmentation, or one of your own with logits(model, batch) and loss(logits, batch)"
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
        logits = tensor_in(output_of(model, batch), self.output, self)
        if logits.dim() != 2:
            raise ValueError(
                f"the model returned logits of shape {tuple(logits.shape)}; expected (batch, classes). {OTHER_TASKS}"
            )
        if logits.shape[1] == 1:
            raise ValueError(
                f"the model returned logits of shape {tuple(logits.shape)}, one class, whose cross-entropy is 0 "
                f"whatever it says; expected two classes or more. {OTHER_TASKS}"
            )
        return logits

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the cross-entropy in fp32, 0-dim, in nats.

        Whether soft labels sum to 1 is checked for every batch on a CPU, and once on a GPU, which waits for each check.

        Args:
            logits: (batch, classes).
            batch: The batch with the labels.

        Raises:
            ValueError: The labels are neither classes nor shares of the classes.
        """
        labels = labels_of(batch)
        self._check(logits, labels)
        return F.cross_entropy(logits.float(), labels)

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the number of samples whose largest logit is at the label (soft: the largest label), 0-dim."""
        labels = labels_of(batch)
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
            check_classes(labels, logits.shape[1], IGNORED, "the network has too few classes, or the labels too many")
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
