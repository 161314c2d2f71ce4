"""A tiny float network, a batch and a task of each kind, and the network prepared and calibrated."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import spequant
from spequant.methods import tasks
from spequant.quantizers import LSQ, percentile

SIDE = 32


class Stages(nn.Module):
    """Three stages that follow one another: two of convolutions, and a head over the mean of the pixels."""

    def __init__(self, outputs):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


class Pixels(nn.Module):
    """The same with a head at every pixel; it returns what torchvision's networks for segmentation return."""

    def __init__(self, classes):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        return {"out": self.head(self.second(self.first(x)))}


class Tokens(nn.Module):
    """Logits per token from the token; with `ends`, those of start and end."""

    def __init__(self, classes, ends=False):
        super().__init__()
        self.ends = ends
        self.table, self.first, self.second = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, input_ids, attention_mask):
        logits = self.head(self.second(self.first(self.table(input_ids)).relu()).relu())
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]} if self.ends else {"logits": logits}


class Sentences(nn.Module):
    """Logits per sentence, from the mean of its tokens."""

    def __init__(self, classes=3):
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        x = (self.table(input_ids) * mask).sum(1) / mask.sum(1)
        return {"logits": self.head(self.second(self.first(x).relu()).relu())}


class Levels(nn.Module):
    """A backbone for detectors: the features of one level, at a quarter of the size."""

    def __init__(self, channels, out_channels=None):
        super().__init__()
        self.out_channels = out_channels or channels
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, channels, 3, 2, 1), nn.ReLU())

    def forward(self, x):
        return {"0": self.second(self.first(x))}


def detector(kind):
    """A detector of torchvision over `Levels`: ssd, retinanet, fcos or faster-rcnn, for a background and 2 classes."""
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
    from torchvision.ops import MultiScaleRoIAlign

    sizes = {"min_size": SIDE, "max_size": SIDE}
    if kind == "ssd":
        boxes = DefaultBoxGenerator([[2]], scales=[0.3, 0.6], steps=[4])
        return detection.ssd.SSD(Levels(8, [8]), boxes, (SIDE, SIDE), 3)
    if kind == "retinanet":
        return detection.RetinaNet(Levels(32), 3, anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)), **sizes)
    if kind == "fcos":
        return detection.FCOS(Levels(32), 3, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), **sizes)
    from torchvision.models.detection.faster_rcnn import TwoMLPHead

    return detection.FasterRCNN(
        Levels(8),
        rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 2, 2),
        box_head=TwoMLPHead(8 * 4, 16),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(16, 3),
        rpn_post_nms_top_n_train=20,
        rpn_post_nms_top_n_test=20,
        **sizes,
    )


def boxes(images=2):
    """(images, targets): one bright square per image, of class 1 or 2."""
    pictures, targets = torch.rand(images, 3, SIDE, SIDE) * 0.2, []
    for i in range(images):
        x, y = torch.randint(2, SIDE - 16, (2,)).tolist()
        pictures[i, i % 2, y : y + 12, x : x + 12] += 0.8
        targets.append({"boxes": torch.tensor([[x, y, x + 12.0, y + 12.0]]), "labels": torch.tensor([1 + i % 2])})
    return list(pictures), targets


@dataclass
class Kind:
    """A task, and a float network and a batch that it fits."""

    task: Any
    network: nn.Module
    batch: Any

    def prepared(self, bits):
        """The network with weights and activations at `bits`, calibrated, in train mode."""
        # No additions: a detector, whose inputs are lists, cannot be traced for them.
        model = spequant.prepare(self.network, weight=LSQ(bits), act=LSQ(bits), residual=None)
        count = len(self.batch[0]) if isinstance(self.batch, tuple) else len(next(iter(self.batch.values())))
        spequant.calibrate(
            model.eval(), [self.batch], samples=count, rule=percentile(97.0), run=lambda m, b: self.task.logits(m, b)
        )
        return model.train()


def kind(name):
    """The `Kind` of a task's name in recipes, or detection:KIND for one of the `detector`s."""
    name, _, which = name.partition(":")
    images, samples = torch.randn(6, 3, 8, 8), 6
    if name == "detection":
        return Kind(tasks.Detection(anchors=16), detector(which or "ssd"), boxes())
    if name == "segmentation":
        masks = torch.randint(0, 3, (samples, 8, 8))
        masks[:, :2] = 255
        return Kind(tasks.Segmentation(), Pixels(3), (images, masks))
    if name in ("token-classification", "span-extraction"):
        ids, mask = torch.randint(0, 20, (samples, 5)), torch.ones(samples, 5, dtype=torch.int64)
        mask[:, 4:] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        if name == "span-extraction":
            ends = {end: torch.randint(0, 4, (samples,)) for end in tasks.SpanExtraction.LABELS}
            return Kind(tasks.SpanExtraction(), Tokens(2, ends=True), {**batch, **ends})
        labels = torch.randint(0, 3, (samples, 5)).masked_fill(mask == 0, -100)
        return Kind(tasks.TokenClassification(), Tokens(3), {**batch, "labels": labels})
    labels = {
        "classification": torch.randint(0, 3, (samples,)),
        "multi-label": torch.randint(0, 2, (samples, 3)),
        "regression": torch.randn(samples, 3),
    }[name]
    return Kind(tasks.by_name[name](), Stages(3), (images, labels))
