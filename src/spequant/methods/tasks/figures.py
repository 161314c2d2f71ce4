"""Figures of an evaluation from sums that add up over batches and processes. All are in percent."""

import torch
from torch import Tensor


def class_counts(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Return the right answers, all answers and all labels per class, without those that are left out.

    Args:
        logits: (..., classes).
        labels: int64 (...), in [0, classes) or `ignored`.
        ignored: The label of what is left out.

    Returns:
        int64 (3, classes).
    """
    classes, keep = logits.shape[-1], labels != ignored
    answers, labels = logits.argmax(-1)[keep], labels[keep]
    right = labels[answers == labels]
    return torch.stack([torch.bincount(x, minlength=classes) for x in (right, answers, labels)])


def class_figures(sums: Tensor, **names: str) -> dict[str, float]:
    """Return figures of `class_counts`, summed over batches.

    Args:
        sums: (3, classes): right answers, answers, labels.
        names: Which figures, and what to call them: `iou` (intersection over union) and `f1`, each the mean over the
            classes that occur in answers or labels, and `accuracy`.

    Raises:
        ValueError: Every label is left out.
    """
    right, answers, labels = sums
    if not labels.sum():
        raise ValueError("every label is one of those that are left out; expected labels to evaluate with")
    occurs = (answers + labels) > 0
    shares = {
        "iou": (right / (answers + labels - right))[occurs].mean(),
        "f1": (2 * right / (answers + labels))[occurs].mean(),
        "accuracy": right.sum() / labels.sum(),
    }
    return {name: 100 * float(shares[figure]) for figure, name in names.items()}
