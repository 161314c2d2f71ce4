"""Figures of detected boxes."""

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spequant.processes import gathered

OVERLAP, SCORE = 0.5, 0.5
"""Least intersection over union of a box that is right, and least score of a box that counts, for F1."""


class BoxMeter:
    """Collects boxes over an evaluation.

    Its figures are `f1`, in percent: of boxes with a score of .5 or more, right if they overlap a labelled box of their
    class by an intersection over union of .5 or more, each labelled box by one box, the surest first. With torchmetrics
    and pycocotools (extra `metrics`) also `map` and `map_50`, the mean average precision of COCO, in percent.

    Args:
        boxes: (logits) -> what the detector returned in evaluation: dicts with boxes, labels and scores.
    """

    def __init__(self, boxes: Callable[[Tensor], Any]):
        self.boxes = boxes
        self.counts = torch.zeros(3)  # right boxes, boxes, labelled boxes
        self.precision = _mean_average_precision()

    @torch.no_grad()
    def update(self, logits: Tensor, batch: Any) -> None:
        boxes = self.boxes(logits)
        if isinstance(boxes, dict):
            raise ValueError("the detector is in training, where it returns losses and no boxes; expected model.eval()")
        names = ("boxes", "labels", "scores")
        answers = [{name: answer[name].detach().float().cpu() for name in names} for answer in boxes]
        targets = [{name: target[name].detach().float().cpu() for name in names[:2]} for target in batch[1]]
        for answer, target in zip(answers, targets, strict=True):
            self.counts += _counted(answer, target)
        if self.precision is not None:
            whole = [
                [{k: v.long() if k == "labels" else v for k, v in x.items()} for x in part]
                for part in (answers, targets)
            ]
            self.precision.update(*whole)

    def compute(self) -> dict[str, float]:
        right, answers, labels = torch.stack(gathered(self.counts)).sum(0).tolist()
        figures = {"f1": 100 * 2 * right / max(1.0, answers + labels)}
        if self.precision is not None:
            figures |= {name: 100 * float(value) for name, value in self.precision.compute().items() if name in MAP}
        return figures


MAP = ("map", "map_50")


def _counted(answer: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
    """Return (3,): right boxes, boxes and labelled boxes of one image."""
    keep = answer["scores"] >= SCORE
    boxes, labels = answer["boxes"][keep], answer["labels"][keep]
    order = answer["scores"][keep].argsort(descending=True)
    overlap = intersection_over_union(boxes, target["boxes"])
    overlap = overlap.masked_fill(labels[:, None] != target["labels"][None], 0.0)
    right = 0
    for i in order.tolist() if len(target["boxes"]) else ():
        share, j = overlap[i].max(0)
        if share >= OVERLAP:
            right += 1
            overlap[:, j] = 0.0
    return torch.tensor([right, len(boxes), len(target["boxes"])], dtype=torch.float32)


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """Return (n, m) for boxes (n, 4) and (m, 4), as (x1, y1, x2, y2)."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp_min(1e-12)


def _mean_average_precision() -> Any:
    """Return torchmetrics' metric; None if it or pycocotools is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("torchmetrics", "pycocotools")):
        return None
    from torchmetrics.detection import MeanAveragePrecision

    logging.getLogger("torchmetrics").setLevel(logging.ERROR)
    return MeanAveragePrecision()
