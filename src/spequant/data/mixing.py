"""mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899) and label smoothing (arXiv 1512.00567) of a batch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spequant.data.vision import seeded, vision


@dataclass(frozen=True)
class Mixing:
    """mixup, cutmix: alpha of the Beta distribution that the share of the other image is drawn from, 0: none; of both,
    each batch takes one. smoothing: share of a target spread over all classes, 0 or more and below 1.

    Image i of a batch is mixed with the last but i, with one share for all; so a batch has an even number of images.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        for argument, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not value >= 0:
                raise ValueError(f"{argument} is {value!r}; expected an alpha of 0 or more, e.g. .2; 0: none")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"label smoothing is {self.smoothing!r}; expected 0 or more, below 1")

    @property
    def changes(self) -> bool:
        return bool(self.mixup or self.cutmix or self.smoothing)

    def __call__(
        self, images: Tensor, labels: Tensor, classes: int, seed: tuple[int, ...] = (0,)
    ) -> tuple[Tensor, Tensor]:
        """(images, in place; soft targets, fp32 (batch, classes), rows of sum 1). labels: int64 in [0, classes).

        seed: what the share and the box follow from, e.g. (seed, epoch, step).
        """
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
