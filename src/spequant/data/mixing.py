"""mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899) and label smoothing (arXiv 1512.00567) of a batch."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spequant.data.vision import seeded, vision


@dataclass(frozen=True)
class Mixing:
    """Mixing of the images of a batch in pairs, and smoothing of their labels.

    Image i from the start of a batch is mixed with image i from its end, so that a batch needs an even number of
    images. All pairs of a batch have the same share.

    Attributes:
        mixup, cutmix: alpha of the Beta distribution of the share, 0 or more; 0: off. If both are on, each batch uses
            one of the two.
        smoothing: Share of a label that is spread over all classes, 0 or more and below 1.

    Raises:
        ValueError: A value is out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        for argument, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{argument} is {value!r}; expected a finite alpha of 0 or more, e.g. .2; 0: none")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"label smoothing is {self.smoothing!r}; expected 0 or more, below 1")

    @property
    def changes(self) -> bool:
        """Whether the images or the labels change."""
        return bool(self.mixup or self.cutmix or self.smoothing)

    def __call__(
        self, images: Tensor, labels: Tensor, classes: int, seed: tuple[int, ...] = (0,)
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (batch, channels, height, width), changed in place.
            labels: int64 (batch,), in [0, classes).
            classes: Number of classes.
            seed: The share and the box depend only on these numbers, e.g. (seed, epoch, step).

        Returns:
            (images, soft labels): soft labels are fp32 (batch, classes), each row with the sum 1.

        Raises:
            ValueError: mixup or CutMix is on, and the number of images is odd; or the labels are no classes.
            ModuleNotFoundError: mixup or CutMix is on, and timm (extra `vision`) is not installed.
        """
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}, which cannot be mixed or smoothed; "
                "expected int64 (batch,), or data.mixup, data.cutmix and train.label_smoothing of 0"
            )
        if not (self.mixup or self.cutmix):
            return images, F.one_hot(labels, classes).float() * (1 - self.smoothing) + self.smoothing / classes
        if len(images) % 2:
            raise ValueError(
                f"a batch of {len(images)} images cannot be mixed in pairs; expected an even number in each process: "
                "change train.batch_size, or set data.mixup and data.cutmix to 0"
            )
        mix = vision("timm.data").Mixup(
            mixup_alpha=self.mixup, cutmix_alpha=self.cutmix, label_smoothing=self.smoothing, num_classes=classes
        )
        with seeded(*seed), torch.no_grad():
            return mix(images, labels)
