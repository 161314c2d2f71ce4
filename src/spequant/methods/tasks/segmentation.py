"""Semantic segmentation: one class per pixel."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.methods.tasks.dense import Dense
from spequant.methods.tasks.task import check_classes, labels_of, labels_or_none, output_of, tensor_in


class Segmentation(Dense):
    """One class per pixel.

    A batch is (images, masks), or a dict with "labels" and the keyword arguments of the network. Masks are int64 or
    uint8 (batch, height, width), in [0, classes), or `ignored` at pixels that are left out. The network returns logits
    (batch, classes, height, width), as they are, as `out` (torchvision) or as `logits` (transformers). torchvision's
    auxiliary head is not trained: make the network with aux_loss=False.

    The loss on the masks is the mean cross-entropy over pixels. A teacher is learned from at the same pixels, by the
    softmax over their classes. Figures are the mean intersection over union of the classes that occur in masks or
    answers, and the share of right pixels.

    Args:
        output: Key or index of the logits in the output of the model; None: as above.
        ignored: The value of pixels that are left out, 255 as in VOC and Cityscapes.
        upsample: Whether logits smaller than the masks are enlarged to their size, bilinearly (transformers' SegFormer
            returns a quarter of the size). If not, another size is an error.
    """

    FIGURES: ClassVar = {"iou": "mean_iou", "accuracy": "pixel_accuracy"}

    def __init__(self, output: str | int | None = None, *, ignored: int = 255, upsample: bool = False):
        super().__init__(output, ignored)
        self.upsample = upsample

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Run `model` on a batch.

        Args:
            model: A network for segmentation.
            batch: As described for the class.

        Returns:
            Logits (batch, height, width, classes); the classes are moved to the end.

        Raises:
            TypeError: The model returns no tensor, or none under `output`.
            ValueError: The logits have another shape, or only one class.
        """
        logits = tensor_in(output_of(model, batch), self.output, self, names=("out", "logits"))
        if logits.dim() != 4 or logits.shape[1] == 1:
            raise ValueError(
                f"the model returned logits of shape {tuple(logits.shape)}; expected (batch, classes, height, width), "
                "two classes or more, for Segmentation (a mask of one class: two classes, background and object)"
            )
        labels = labels_or_none(batch)
        if self.upsample and labels is not None and labels.dim() == 3 and labels.shape[1:] != logits.shape[2:]:
            logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
        return logits.movedim(1, -1)

    def labels(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the masks as int64 (batch, height, width).

        Raises:
            ValueError: They are no classes of the logits' pixels.
        """
        labels = labels_of(batch)
        if labels.dtype not in (torch.int64, torch.int32, torch.uint8) or labels.shape != logits.shape[:-1]:
            size = labels.dim() == 3 and labels.shape[0] == logits.shape[0]
            advice = "; Segmentation(upsample=True) enlarges logits" if size else ""
            raise ValueError(
                f"masks are {labels.dtype} of shape {tuple(labels.shape)}; expected int64 or uint8 "
                f"{tuple(logits.shape[:-1])}, one class per pixel of the logits{advice}"
            )
        check_classes(labels, logits.shape[-1], self.ignored, "give Segmentation(ignored=...) another one")
        return labels.long()
