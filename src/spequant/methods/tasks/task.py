"""What methods ask of a task, and how tasks read the batch and the output of a model. Each task has its own file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.methods.losses import DistillLoss, ensemble
from spequant.processes import gathered


class Task(Protocol):
    """The part of a task that every method uses.

    A task may also have `distill(loss, student, teacher, batch, temperature)` and `ensemble(passes, temperature)`,
    where a softmax over the last axis is not what its answers mean or some of them are to be left out. See
    `distilled` and `pooled`.
    """

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Run `model` on the inputs of `batch`, and return its answers: logits with the classes last, or values."""
        ...

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the loss on the labels of `batch`, 0-dim, the mean over samples."""
        ...


class Counted(Task, Protocol):
    """A task whose answers are right or wrong, for training loops and evaluation."""

    def hits(self, logits: Tensor, batch: Any) -> Tensor:
        """Return the number of samples whose answer is right, 0-dim."""
        ...


class Meter(Protocol):
    """Collects answers over an evaluation."""

    def update(self, logits: Tensor, batch: Any) -> None:
        """Add a batch; `logits` is what the task returned."""
        ...

    def compute(self) -> dict[str, float]:
        """Return figures over all batches of all processes: in percent, or in the targets' unit if named ..._error."""
        ...


class Metered(Task, Protocol):
    """A task with figures of its own, for evaluation."""

    def meter(self) -> Meter:
        """Return a new, empty meter."""
        ...


AnyTask = Counted | Metered
"""What training loops and evaluation take: at least one of `hits` and `meter`."""


def distilled(
    task: Task, loss: DistillLoss, student: Tensor, teacher: Tensor, batch: Any, temperature: float
) -> Tensor:
    """Return the distillation loss of a task: its own `distill`, or `loss` on the logits as they are.

    Args:
        task: The task that made the logits.
        loss: The loss of the method.
        student, teacher: What the task returned for both, of the same shape.
        batch: The batch, whose labels may say what to leave out.
        temperature: T, above 0.
    """
    special = getattr(task, "distill", None)
    return (
        loss(student, teacher, temperature) if special is None else special(loss, student, teacher, batch, temperature)
    )


def pooled(task: Task, passes: Sequence[Tensor], temperature: float) -> Tensor:
    """Return one teacher's logits for several passes: by the task's own `ensemble`, or `losses.ensemble`."""
    if len(passes) == 1:
        return passes[0]
    return getattr(task, "ensemble", ensemble)(passes, temperature)


def check_task(task: Task, refused: tuple[type, ...], method: str, reason: str) -> None:
    """Raise a ValueError if `task` is one of the tasks that `method` cannot train."""
    if isinstance(task, refused):
        raise ValueError(
            f"task is {type(task).__name__}, which {method} cannot train: {reason}; expected another method, e.g. "
            "SPEQ, Retrain or Distill"
        )


def output_of(model: nn.Module, batch: Any, labels: Sequence[str] = ("labels",)) -> Any:
    """Run `model` on the inputs of a batch, and return what it returns.

    Args:
        model: Called with `batch[0]`, or with the entries of a dict by name.
        batch: (inputs, labels), or a dict.
        labels: Names in a dict that are not for the model.
    """
    if isinstance(batch, Mapping):
        return model(**{name: value for name, value in batch.items() if name not in labels})
    return model(batch[0])


def labels_of(batch: Any, name: str = "labels") -> Tensor:
    """Return the labels of a batch: (inputs, labels), or a dict that has them as `name`."""
    return batch[name] if isinstance(batch, Mapping) else batch[1]


def labels_or_none(batch: Any) -> Tensor | None:
    """Return the labels of a batch, or None if there are none, e.g. for a method that reads no labels."""
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if len(batch) > 1 else None


def tensor_in(output: Any, key: str | int | None, task: object, names: Sequence[str] = ("logits",)) -> Tensor:
    """Return the tensor of answers in the output of a model.

    Args:
        output: A tensor, dict, named tuple, tuple or object.
        key: Key, attribute or index of the tensor; None: the output itself, or one of `names` in it.
        task: The task, for the error.
        names: Where to look for the tensor if `key` is None.

    Raises:
        TypeError: There is no tensor.
    """
    if key is not None:
        value = part_of_output(output, key)
    elif isinstance(output, Tensor):
        value = output
    else:
        parts = [part_of_output(output, name) for name in names]
        value = next((part for part in parts if isinstance(part, Tensor)), None)
    if isinstance(value, Tensor):
        return value
    kind = type(task).__name__
    keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise TypeError(
        f"the model returned {type(output).__name__}{keys}, and output is {key!r}; expected a tensor of logits: say "
        f"where it is, {kind}(output=0) or output='key', or give the method a task of your own"
    )


def part_of_output(output: Any, key: str | int) -> Any:
    """Return the part of a model's output under a key, an attribute's name or an index; None if there is none."""
    if isinstance(output, Mapping):
        return output.get(key)
    if isinstance(key, str):
        return getattr(output, key, None)
    return output[key] if isinstance(output, tuple | list) and key < len(output) else None


def check_classes(labels: Tensor, classes: int, ignored: int | None, what: str) -> None:
    """Raise a ValueError unless labels are in [0, classes) or `ignored`. Only on the CPU: a GPU would have to wait."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or not labels.numel():
        return
    outside = labels[(labels < 0) | (labels >= classes)]
    outside = outside if ignored is None else outside[outside != ignored]
    if outside.numel():
        left_out = "" if ignored is None else f", or {ignored} for what is left out"
        raise ValueError(
            f"labels have the value {int(outside[0])}; expected 0 to {classes - 1}, the classes{left_out}; {what}"
        )


def cross_entropy_without(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Return the mean cross-entropy in fp32, in nats, over the labels that are not `ignored`; 0 if there are none.

    Args:
        logits: (..., classes).
        labels: int64 (...).
        ignored: The label of answers that are left out.
    """
    total = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=ignored, reduction="sum")
    return total / (labels != ignored).sum().clamp_min(1)


def distilled_where(
    keep: Tensor | None, loss: DistillLoss, student: Tensor, teacher: Tensor, temperature: float
) -> Tensor:
    """Return `loss` of the answers where `keep` is true; 0, with a gradient of 0, if there are none.

    Args:
        keep: bool (...); None: all.
        loss: The loss of the method.
        student, teacher: (..., classes).
        temperature: T, above 0.

    Raises:
        ValueError: The teacher's logits have another shape than the student's.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; expected "
            "the same: a teacher of the same classes"
        )
    if keep is None:
        return loss(student.flatten(0, -2), teacher.flatten(0, -2), temperature)
    if not bool(keep.any()):
        return student.float().sum() * 0.0
    return loss(student[keep], teacher[keep], temperature)


class Sums:
    """A meter whose figures follow from sums over samples.

    Args:
        count: (logits, batch) -> the sums over one batch, of any shape, the same for every batch.
        figures: (sums over everything, float64 on the CPU) -> figures.
    """

    def __init__(self, count: Callable[[Tensor, Any], Tensor], figures: Callable[[Tensor], dict[str, float]]):
        self.count, self.figures = count, figures
        self.total: Tensor | None = None

    @torch.no_grad()
    def update(self, logits: Tensor, batch: Any) -> None:
        sums = self.count(logits, batch).double()
        self.total = sums if self.total is None else self.total + sums

    def compute(self) -> dict[str, float]:
        totals = [t for t in gathered(None if self.total is None else self.total.cpu()) if t is not None]
        if not totals:
            raise ValueError("there was no batch; expected one update or more before compute")
        return self.figures(torch.stack(totals).sum(0))
