"""Question answering: where in a sequence the answer starts and ends."""

from typing import Any

import torch
from torch import Tensor, nn

from spequant.methods.tasks.task import cross_entropy_without, output_of, part_of_output

LEFT_OUT = -100


class SpanExtraction:
    """Question answering: where in a sequence the answer starts and ends.

    A batch is a dict of tensors: the keyword arguments of the network, (batch, length) each, including
    `attention_mask` (1: token, 0: padding), and the labels `start_positions` and `end_positions`, int64 (batch,). A
    position outside the sequence is left out of the loss, as in transformers. The network returns `start_logits` and
    `end_logits`, (batch, length) each.

    A teacher is learned from by the softmax over the positions, of start and end each.
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
        output = output_of(model, batch, self.LABELS)
        ends = [part_of_output(output, name) for name in ("start_logits", "end_logits")]
        if not all(isinstance(end, Tensor) for end in ends):
            raise TypeError(
                f"the model returned {type(output).__name__} without start_logits and end_logits; expected a network "
                "for question answering, such as transformers' AutoModelForQuestionAnswering"
            )
        padding = batch["attention_mask"].unsqueeze(1) == 0
        return torch.stack(ends, dim=1).masked_fill(padding, float("-inf"))

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the mean of the cross-entropies of start and end in fp32, 0-dim, in nats; 0 if all are left out."""
        return cross_entropy_without(logits, self._positions(logits, batch), LEFT_OUT)

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the number of sequences whose start and end both have the largest logit, 0-dim."""
        return (logits.argmax(-1) == self._positions(logits, batch)).all(-1).sum()

    def _positions(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the labels (batch, 2), with -100 for positions that the loss leaves out."""
        positions = torch.stack([batch[name] for name in self.LABELS], dim=1)
        return torch.where((positions >= 0) & (positions < logits.shape[-1]), positions, LEFT_OUT)
