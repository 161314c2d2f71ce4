"""Classification of each token of a sequence, e.g. names and parts of speech."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spequant.methods.tasks.dense import Dense
from spequant.methods.tasks.task import check_classes, labels_of, output_of, tensor_in


class TokenClassification(Dense):
    """One class per token.

    A batch is a dict with the keyword arguments of the network, (batch, length) each, and "labels", int64
    (batch, length); or (inputs, labels). The label `ignored` marks tokens that are left out: padding, and all but the
    first part of a word. The network returns logits (batch, length, classes).

    The loss on the labels is the mean cross-entropy over tokens. A teacher is learned from at the same tokens, by the
    softmax over their classes; without labels, at those with `attention_mask` 1. Figures are the accuracy over tokens,
    and F1, the mean over classes that occur. F1 of whole entities needs their scheme, and is not computed.

    Args:
        output: Key or index of the logits in the output of the model; None: the output, or `logits` in it.
        ignored: The label of tokens that are left out.
    """

    FIGURES: ClassVar = {"accuracy": "accuracy", "f1": "f1"}

    def __init__(self, output: str | int | None = None, *, ignored: int = -100):
        super().__init__(output, ignored)

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Run `model` on a batch.

        Args:
            model: A network that classifies tokens.
            batch: As described for the class.

        Returns:
            Logits (batch, length, classes).

        Raises:
            TypeError: The model returns no tensor, or none under `output`.
            ValueError: The logits have another shape, or only one class.
        """
        logits = tensor_in(output_of(model, batch), self.output, self)
        if logits.dim() != 3 or logits.shape[-1] == 1:
            raise ValueError(
                f"the model returned logits of shape {tuple(logits.shape)}; expected (batch, length, classes), two "
                "classes or more, for TokenClassification (Classification: one class per sample)"
            )
        return logits

    def kept(self, batch: Any) -> Tensor | None:
        """Return which tokens a teacher is learned from; without labels, those with `attention_mask` 1."""
        keep = super().kept(batch)
        if keep is None and isinstance(batch, Mapping) and (mask := batch.get("attention_mask")) is not None:
            return mask.bool()
        return keep

    def labels(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the labels as int64 (batch, length).

        Raises:
            ValueError: They are no classes of the logits' tokens.
        """
        labels = labels_of(batch)
        if labels.dtype not in (torch.int64, torch.int32, torch.uint8) or labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected int64 "
                f"{tuple(logits.shape[:-1])}, one class per token"
            )
        check_classes(labels, logits.shape[-1], self.ignored, "give TokenClassification(ignored=...) another one")
        return labels.long()
