"""Soft labels made once: a float teacher's answers to the very crops that training reads.

    p ~ a / sum(a),   a_c = max(q_c, 1/4)^2 of the k largest classes,   a_c = max(q_r, 1/4)^2 / (C - k) of the others

| symbol | here |
|---|---|
| p = softmax(z / T) of the teacher's logits z for a crop; C classes | `temperature` |
| k classes of the largest p, and r, the sum of the others, which is spread evenly over them | `top` |
| q = round(255 sqrt(p)) of each of the k, and of r: k + 1 bytes; a 0 is read as 1/4, so that no p is 0 | `codes` |
| m crops per image, the slots; epoch e reads slot e mod m | `slots` |

The crop of an image in a slot is a function of (seed, slot, image) alone: it is made again, and not stored. That
answers are kept with their crops, and r spread evenly, is FKD's (Shen and Xing, ECCV 2022). Roots in 8 bits are ours:
to second order KL(p || p + d) = sum d^2 / 2 p, in which an equal error of sqrt(p) counts alike for each p.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spequant.data.image_files import RandomCrop
from spequant.data.images import EVERYTHING, Augment, ImageSet, epoch_order
from spequant.data.slot_crops import check_same, crop_facts, digest, slot_crops
from spequant.files import destination, placed

FORMAT, ENTRY = 1, "soft_labels"
SLOTS, TOP = 8, 10
LEVELS, LEAST_CODE = 255, 0.25


class SoftLabels:
    """A file of soft labels, checked against the training set whose batches it goes with.

    Args:
        path: A file that `make_soft_labels` wrote.
        data: The training images, of classes.
        augment: Their augmentation in training.

    Attributes:
        slots, top: m and k.
        temperature: T.
        seed: Of the crops; the order of the images follows from another seed.
        teacher: Digest of the teacher's state, in hexadecimal.
        digest: Digest of all that is stored, in hexadecimal.
        lost: Mean KL divergence in nats of what is read from what the teacher answered.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file, or damaged, or of other images, another order or another augmentation; the
            message says which.

    Example:
        labels = SoftLabels("labels.safetensors", data, Augment())
        for batch in labels.batches(128, seed=0, epoch=0):
            losses = Distill(temperature=labels.temperature)(model, batch)

    References:
        Shen and Xing, A Fast Knowledge Distillation Framework for Visual Recognition, ECCV 2022, arXiv 2112.01528.
    """

    def __init__(self, path: Path | str, data: ImageSet, augment: Augment | RandomCrop | None):
        self.path, self.data, self.augment = Path(path), data, augment
        head = _head(self.path)
        self.seed, self.slots, self.top = (int(head[name]) for name in ("seed", "slots", "top"))
        self.temperature, self.lost, self.teacher = float(head["temperature"]), float(head["lost"]), head["teacher"]
        self.digests: list[str] = head["digests"]
        self.digest = hashlib.blake2b(json.dumps(head, sort_keys=True).encode(), digest_size=8).hexdigest()
        check_same(self.path, head["data"], crop_facts(data, augment, self.seed, self.slots))

    def batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, part: slice = EVERYTHING
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the training batches of an epoch, without a shorter last batch.

        Args:
            batch_size: Images per batch, over all processes.
            seed, epoch: The order depends only on these. The crops are those of slot `epoch` mod `slots`.
            start: First step that is yielded, 0 or more.
            part: The slice of each batch that this process takes, as in `train_batches`.

        Yields:
            (images, labels, soft labels): images and labels as from `train_batches`; the third are T log p, the
            teacher's logits but for a constant per image, fp32 (batch, classes).

        Raises:
            ValueError: A number is out of range, or the slot's bytes have changed.
        """
        order, parts = epoch_order(len(self.data), batch_size, seed=seed, epoch=epoch, start=start, part=part)
        slot = epoch % self.slots
        classes, codes = (x.to(self.data.labels.device) for x in self._read(slot))
        indices = torch.from_numpy(order).to(classes.device)
        crops = slot_crops(self.data, parts, order, self.augment, self.seed, slot)
        for positions, images in zip(parts, crops, strict=True):
            batch = indices[positions.start : positions.stop : positions.step]
            answers = decoded(classes[batch], codes[batch], self.data.classes, self.temperature)
            images = self.data.normalise(images).contiguous(memory_format=torch.channels_last)
            yield images, self.data.labels[batch], answers

    def _read(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return the classes (images, k) and codes (images, k + 1) of a slot, after a check of their bytes."""
        with safe_open(self.path, framework="pt") as file:
            classes, codes = file.get_slice("classes")[slot], file.get_slice("codes")[slot]
        if (actual := digest(classes, codes)) != self.digests[slot]:
            raise ValueError(f"{self.path} is damaged: slot {slot} has digest {actual}, expected {self.digests[slot]}")
        return classes, codes


@torch.no_grad()
def make_soft_labels(
    teacher: nn.Module,
    data: ImageSet,
    augment: Augment | RandomCrop | None,
    path: Path | str,
    *,
    slots: int | None = None,
    top: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 250,
    track: Callable[[Iterable[Any], int], Iterable[Any]] = lambda batches, count: batches,
) -> SoftLabels:
    """Write a teacher's answers to `slots` crops of each training image, in fp32.

    Args:
        teacher: A float network of any size, in eval mode, on the device of `data`; it returns logits (batch, classes).
        data: The training images, of classes.
        augment: Their augmentation in training.
        path: The file, which appears whole or not at all. Its bytes per slot and image: 2 top + 1, or 3 top + 1 from
            257 classes on.
        slots: m, 1 or more; None: 8, or 1 without augmentation.
        top: k, 1 to the number of classes; None: 10, or all classes if they are fewer.
        temperature: T, above 0, at which the student will learn.
        seed: Of the crops, 0 or more.
        batch_size: Images per forward pass.
        track: Is called with the batches of all slots and their number, and returns them.

    Returns:
        The file, opened and checked.

    Raises:
        OSError: `path` cannot be written.
        ValueError: A number is out of range; the data have other targets than classes; the teacher is in training mode
            or returns something else, e.g. logits that are not finite.
    """
    slots = slots if slots is not None else SLOTS if augment is not None else 1
    top = top if top is not None else min(TOP, data.classes)
    _check(teacher, data, augment, slots, top, temperature, seed)
    destination(Path(path))
    facts = crop_facts(data, augment, seed, slots)
    classes = torch.empty(slots, len(data), top, dtype=_smallest(data.classes))
    codes = torch.empty(slots, len(data), top + 1, dtype=torch.uint8)
    parts = [range(first, min(first + batch_size, len(data))) for first in range(0, len(data), batch_size)]
    order = np.arange(len(data))
    every = ((slot, crops) for slot in range(slots) for crops in slot_crops(data, parts, order, augment, seed, slot))
    lost = 0.0  # nats
    for number, (slot, crops) in enumerate(track(every, slots * len(parts))):
        images = data.normalise(crops).contiguous(memory_format=torch.channels_last)
        logits = _logits(teacher, images, data.classes)
        largest, stored = encoded(logits, top, temperature)
        lost += float(_lost(logits, decoded(largest, stored, data.classes, temperature), temperature))
        part = parts[number % len(parts)]
        classes[slot, part.start : part.stop] = largest.cpu()
        codes[slot, part.start : part.stop] = stored.cpu()
    head = {"format": FORMAT, "data": facts, "seed": seed, "slots": slots, "top": top, "temperature": temperature}
    head |= {"teacher": digest(*teacher.state_dict().values()), "lost": lost / (slots * len(data))}
    _write(Path(path), head, classes, codes)
    return SoftLabels(path, data, augment)


def encoded(logits: Float[Tensor, "batch classes"], top: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return what is stored of a teacher's logits.

    Args:
        logits: (batch, classes).
        top: k.
        temperature: T.

    Returns:
        (classes, codes): int64 (batch, k), by falling probability; uint8 (batch, k + 1), the last of the others' sum.
    """
    shares = torch.softmax(logits.float() / temperature, dim=-1)
    largest, classes = shares.topk(top)
    others = (1 - largest.sum(-1, keepdim=True)).clamp_min(0)
    return classes, (torch.cat([largest, others], -1).sqrt() * LEVELS).round().to(torch.uint8)


def decoded(classes: Tensor, codes: Tensor, count: int, temperature: float) -> Float[Tensor, "batch classes"]:
    """Return T log p of what `encoded` returned.

    Args:
        classes: (batch, k), any integers.
        codes: uint8 (batch, k + 1).
        count: C, the number of classes, k or more.
        temperature: T.
    """
    top = classes.shape[1]
    squares = codes.float().clamp_min(LEAST_CODE).square()
    shares = (squares[:, top:] / max(1, count - top)).repeat(1, count).scatter(1, classes.long(), squares[:, :top])
    return temperature * (shares / shares.sum(-1, keepdim=True)).log()


def _check(
    teacher: nn.Module,
    data: ImageSet,
    augment: Augment | RandomCrop | None,
    slots: int,
    top: int,
    temperature: float,
    seed: int,
) -> None:
    """Refuse numbers with which nothing would be stored, or the same twice; a set or teacher without classes."""
    counts = {"slots": (slots, 1, None), "top": (top, 1, data.classes), "seed": (seed, 0, None)}
    for name, (value, least, most) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
            limit = f"to {most}, the number of classes" if most else "or more"
            raise ValueError(f"{name} is {value!r}; expected a whole number of {least} {limit}")
    if slots > 1 and augment is None:
        raise ValueError(f"slots is {slots} without augmentation, where all slots are the same; expected 1")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature!r}; expected a finite number above 0, e.g. 1 to 4")
    if not data.of_classes:
        raise ValueError(f"labels are {data.labels.dtype} of shape {tuple(data.labels.shape)}; expected one class each")
    if teacher.training:
        raise ValueError("teacher is in training mode, in which its answers depend on the batch; call teacher.eval()")


def _logits(teacher: nn.Module, images: Tensor, classes: int) -> Tensor:
    logits = teacher(images)
    expected = (len(images), classes)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"teacher returned {what}; expected logits {expected}, of the classes of the data")
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("teacher returned logits that are NaN or infinite; expected a trained float network")
    return logits


def _write(path: Path, head: dict[str, Any], classes: Tensor, codes: Tensor) -> None:
    """Write a file, with a digest of each slot in its head."""
    text = json.dumps({**head, "digests": [*map(digest, classes, codes)]})
    with placed(path) as temporary:
        save_file({"classes": classes, "codes": codes}, temporary, {ENTRY: text})


def _smallest(classes: int) -> torch.dtype:
    """Return the smallest type that holds the number of a class."""
    return torch.uint8 if classes <= 256 else torch.int16 if classes <= 2**15 else torch.int32


def _lost(logits: Tensor, stored: Tensor, temperature: float) -> Tensor:
    """Return the sum over samples of KL(softmax(logits / T) || softmax(stored / T)), in nats, 0-dim."""
    read, full = (torch.log_softmax(x.float() / temperature, dim=-1) for x in (stored, logits))
    return nn.functional.kl_div(read, full, reduction="sum", log_target=True)


def _head(path: Path) -> dict[str, Any]:
    """Return the facts that stand in a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a file that `spequant soft-labels` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads(file.metadata()[ENTRY])
        version = head["format"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds no soft labels ({error!r}); expected a file that `spequant soft-labels` wrote"
        ) from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}; this version reads {FORMAT}: make it anew")
    return head
