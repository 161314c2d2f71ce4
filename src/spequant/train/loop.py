"""The one training loop, and evaluation. Builds nothing: model, method and batches come from outside."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from spequant.methods import Method
from spequant.tasks import Classification, Task
from spequant.train.optimizers import reduced_precision

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""epoch -> its training batches"""


@dataclass(frozen=True)
class Evaluation:
    """accuracy: percent; loss: mean cross-entropy; samples: how many."""

    accuracy: float
    loss: float
    samples: int


@dataclass
class Progress:
    """Where training stands; given to the callback after every step. Tensors stay on the device until they are read."""

    epoch: int
    step: int  # within the epoch, from 1
    steps: int  # of an epoch
    epochs: int
    lr: float
    images: int
    seconds: float  # since the epoch's start
    sums: Tensor  # (4,): total, task, distill, hits; over the epoch's steps, the first three per step

    @property
    def done(self) -> float:
        """Share of all training that is behind, 0 to 1."""
        return (self.epoch + self.step / self.steps) / self.epochs

    def row(self) -> dict[str, Any]:
        """The means so far, read from the device."""
        total, task, distill, hits = self.sums.tolist()
        return {
            "epoch": self.epoch + 1,
            "loss": total / self.step,
            "task": task / self.step,
            "distill": distill / self.step,
            "train_accuracy": 100 * hits / max(1, self.images),
            "lr": self.lr,
            "images_per_second": self.images / max(1e-9, self.seconds),
            "seconds": self.seconds,
        }


def fit(
    model: nn.Module,
    method: Method,
    batches: Batches,
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    epochs: int,
    steps: int,
    precision: Literal["fp32", "bf16"] = "fp32",
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train `model` (compiled or not) for `epochs` epochs of `steps` steps. The last weights are the result.

    FloatingPointError: the mean loss of an epoch is not finite.
    """
    device = next(model.parameters()).device
    for epoch in range(epochs):
        model.train()
        state = Progress(epoch, 0, steps, epochs, 0.0, 0, 0.0, torch.zeros(4, device=device))
        start = time.perf_counter()
        for batch in batches(epoch):
            with reduced_precision(device, precision):
                losses = method(model, batch)
            losses.total.backward()
            state.lr = optimizer.param_groups[0]["lr"]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            hits = (losses.logits.argmax(-1) == batch[1]).sum()
            state.sums += torch.stack([losses.total.detach(), losses.task.detach(), losses.distill.detach(), hits])
            state.step += 1
            state.images += len(batch[1])
            state.seconds = time.perf_counter() - start
            on_step(state)
        if not torch.isfinite(state.sums).all():
            raise FloatingPointError(
                f"the loss of epoch {epoch + 1} is not finite: {state.row()}; lower the learning rate"
            )
        on_epoch(state)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], task: Task | None = None) -> Evaluation:
    """Top-1 accuracy and mean loss of `model` in eval mode, in fp32. The model's mode is put back."""
    task = task or Classification()
    training = model.training
    model.eval()
    hits, loss, samples = 0, 0.0, 0
    try:
        for batch in batches:
            logits = task.logits(model, batch)
            hits += int((logits.argmax(-1) == batch[1]).sum())
            loss += float(task.loss(logits, batch)) * len(batch[1])
            samples += len(batch[1])
    finally:
        model.train(training)
    if not samples:
        raise ValueError("batches are empty; expected at least one to evaluate on")
    return Evaluation(100 * hits / samples, loss / samples, samples)
