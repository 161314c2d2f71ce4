"""Object detection with torchvision's detectors: their own losses on the boxes, and distillation at their anchors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.methods.losses import DistillLoss, ensemble
from spequant.methods.tasks.boxes import BoxMeter
from spequant.methods.tasks.multi_label import yes_and_no
from spequant.processes import unwrapped

BOX = 4
"""Numbers of a box: how it differs from its anchor."""
DETECTOR_OUTPUT = "spequant_detector_output"
"""Attribute of the logits: (the detector, what it returned)."""


class Detection:
    """Boxes with classes, by a detector of torchvision: Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD, SSDlite.

    A batch is (images, targets), two lists: images are fp32 (3, height, width), from 0 to 1, of any sizes; a target is
    a dict with "boxes", fp32 (objects, 4) as (x1, y1, x2, y2) in pixels, and "labels", int64 (objects,), as torchvision
    wants them (0 is the background, except in RetinaNet and FCOS). A detector has two modes. In training it returns its
    losses, whose sum is the loss on the labels. In evaluation it returns boxes, which the figures are of; the losses
    are then computed by a second pass, with batch norm as in evaluation.

    The logits are what the head says at every anchor: classes, and the box's differences from the anchor. Teacher and
    student have the same anchors for the same images, so that a teacher is learned from there, at the `anchors` per
    image where it is surest of an object:

        loss(classes) + smooth L1(differences of the boxes)

    `loss` is the method's (cosine, kl): of the softmax over the classes (SSD), or the sum over classes of that of each
    sigmoid (RetinaNet, and FCOS with its centerness). Of two-stage detectors the first stage is distilled, the region
    proposals' objectness and boxes; the second learns from the labels only. Chen et al. distil both kinds of outputs;
    that only the teacher's surest anchors count follows General Instance Distillation, in a simple form of ours.

    Args:
        anchors: Anchors per image that are distilled at, 1 or more.

    Raises:
        ValueError: `anchors` is below 1.

    References:
        Chen, Choi, Yu, Han and Chandraker, NIPS 2017, Learning Efficient Object Detection Models with Knowledge
        Distillation. Dai et al., CVPR 2021, arXiv 2103.02340.
    """

    def __init__(self, *, anchors: int = 64):
        if isinstance(anchors, bool) or not isinstance(anchors, int) or anchors < 1:
            raise ValueError(f"anchors is {anchors!r}; expected a whole number of 1 or more")
        self.anchors = anchors
        # Of SSD and of FCOS; known from the detector that runs.
        self.softmax, self.centerness = False, False

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Run `model` on a batch.

        Args:
            model: A detector of torchvision, prepared or float.
            batch: As described for the class; in evaluation the targets may be missing.

        Returns:
            (batch, anchors, classes + 4), the head's answers.

        Raises:
            TypeError: The model is no detector of torchvision, or the batch has another form.
        """
        _check_batch(batch)
        detector = unwrapped(model)
        head, first_stage = _head(detector)
        self.softmax = any(kind.__name__ == "SSD" for kind in type(detector).__mro__)
        answers: list[Any] = []
        handle = head.register_forward_hook(lambda module, args, output: answers.append(output))
        try:
            output = model(batch[0], batch[1]) if detector.training else model(batch[0])
        finally:
            handle.remove()
        if not answers:
            raise TypeError(f"the head of {type(detector).__name__} did not run; expected torchvision's forward")
        self.centerness = not first_stage and "bbox_ctrness" in answers[-1]
        logits = _first_stage(*answers[-1]) if first_stage else _one_stage(answers[-1])
        setattr(logits, DETECTOR_OUTPUT, (detector, output))
        return logits

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the sum of the detector's losses, 0-dim.

        Args:
            logits: What `logits` returned, not detached.
            batch: The batch with the targets.

        Raises:
            ValueError: `logits` do not come from `logits`, or were detached.
        """
        detector, losses = self._output(logits)
        if not isinstance(losses, dict):
            with _losses_wanted(detector):
                losses = detector(batch[0], batch[1])
        return torch.stack([value.float() for value in losses.values()]).sum()

    def distill(self, loss: DistillLoss, student: Tensor, teacher: Tensor, batch: Any, temperature: float) -> Tensor:
        """Return the distance of the student's head to the teacher's at the teacher's surest anchors, 0-dim.

        Raises:
            ValueError: The shapes differ, because the detectors have other anchors or classes, or resize otherwise.
        """
        if student.shape != teacher.shape:
            raise ValueError(
                f"the student's head answers {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; expected "
                "the same anchors and classes: a teacher of the same kind, and one size in the detector's min_size"
            )
        with torch.no_grad():
            surest = self._sureness(teacher).topk(min(self.anchors, teacher.shape[1]), dim=1).indices
        (classes, boxes), (target_classes, target_boxes) = (
            x.gather(1, surest[..., None].expand(-1, -1, x.shape[-1])).float().tensor_split([-BOX], dim=-1)
            for x in (student, teacher)
        )
        factor = 1
        if not self.softmax:
            factor = classes.shape[-1]
            classes, target_classes = yes_and_no(classes), yes_and_no(target_classes)
        return factor * loss(classes, target_classes, temperature) + F.smooth_l1_loss(boxes, target_boxes)

    def ensemble(self, passes: Sequence[Tensor], temperature: float) -> Tensor:
        """Return the head's answers whose probabilities, and boxes, are the means of those of `passes`."""
        classes, boxes = zip(*(x.float().tensor_split([-BOX], dim=-1) for x in passes), strict=True)
        if self.softmax:
            mean = ensemble(classes, temperature)
        else:
            no, yes = ensemble([yes_and_no(z) for z in classes], temperature).unbind(-1)
            mean = yes - no
        return torch.cat([mean, torch.stack(boxes).mean(0)], dim=-1)

    def meter(self) -> BoxMeter:
        """Return a meter of the boxes; see `BoxMeter`."""
        return BoxMeter(lambda logits: self._output(logits)[1])

    def _output(self, logits: Tensor) -> tuple[Any, Any]:
        output = getattr(logits, DETECTOR_OUTPUT, None)
        if output is None:
            raise ValueError("logits were detached or changed; expected the tensor that Detection.logits returned")
        return output

    def _sureness(self, logits: Tensor) -> Tensor:
        """Return how sure each anchor is of an object, (batch, anchors)."""
        classes = logits[..., :-BOX].float()
        if self.softmax:
            return 1 - classes.softmax(-1)[..., 0]
        if self.centerness:
            return classes[..., :-1].amax(-1).sigmoid() * classes[..., -1].sigmoid()
        return classes.amax(-1)


def _head(detector: Any) -> tuple[nn.Module, bool]:
    """Return the module whose outputs are the answers at the anchors, and whether it is that of a first stage."""
    if isinstance(rpn := getattr(detector, "rpn", None), nn.Module) and hasattr(rpn, "head"):
        return rpn.head, True  # type: ignore[return-value]
    if hasattr(detector, "head") and hasattr(detector, "anchor_generator"):
        return detector.head, False
    raise TypeError(
        f"the model is a {type(detector).__name__}; expected a detector of torchvision (torchvision.models.detection) "
        "for Detection, or give the method a task of your own"
    )


def _one_stage(answers: Any) -> Tensor:
    names = ("cls_logits", "bbox_ctrness", "bbox_regression")
    return torch.cat([answers[name].float() for name in names if name in answers], dim=-1)


def _first_stage(objectness: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """Return objectness and box of each anchor of all levels, (batch, anchors, 5), in the detector's order."""
    z = [level.permute(0, 2, 3, 1).flatten(1).unsqueeze(-1) for level in objectness]
    # (batch, anchors at a position * 4, height, width)
    d = [level.unflatten(1, (-1, BOX)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in boxes]
    return torch.cat([torch.cat(z, dim=1), torch.cat(d, dim=1)], dim=-1).float()


def _check_batch(batch: Any) -> None:
    fits = isinstance(batch, tuple | list) and len(batch) > 0 and isinstance(batch[0], tuple | list)
    targets = batch[1] if fits and len(batch) > 1 else ()
    if not fits or not all(isinstance(target, dict) and {"boxes", "labels"} <= set(target) for target in targets):
        raise TypeError(
            f"batch is a {type(batch).__name__}; expected (images, targets), two lists: tensors (3, height, width) "
            "and dicts with boxes and labels"
        )


@contextmanager
def _losses_wanted(detector: Any) -> Iterator[None]:
    """Inside, the detector returns losses in evaluation, too; batch norm and dropout stay as they are."""
    parts = [detector, *(getattr(detector, name) for name in ("rpn", "roi_heads") if hasattr(detector, name))]
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = True
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
