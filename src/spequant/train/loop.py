"""The training loop, of which there is one, and evaluation.

State and batches come from the caller; nothing is built here, and no file is read or written.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from spequant.calibration.batches import modes_kept
from spequant.functional import without_autocast
from spequant.methods.tasks import AnyTask, Classification
from spequant.processes import anyone, rank, sum_over_processes, world
from spequant.train.guard import FiniteGuard
from spequant.train.launch import make_accelerator
from spequant.train.state import Progress, TrainingState

if TYPE_CHECKING:
    from accelerate import Accelerator

Batches = Callable[[int, int], Iterable[Any]]
"""(epoch, first step) -> this process's part of the batches of that epoch, from that step on. Both count from 0."""
CHECK_EVERY = 50
"""Steps between two checks that the loss is finite; each check waits for the device."""


class Interrupted(Exception):
    """Training stopped because `stop` asked for it, after a last call of `on_checkpoint`; `step`: steps done."""

    def __init__(self, step: int):
        super().__init__(f"interrupted after step {step}")
        self.step = step


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        accuracy: Share of right answers in percent, 0 to 100; nan if the task has no `hits`, e.g. of values or boxes.
        loss: Mean loss of the task; for classification, cross-entropy in nats.
        samples: Number of samples.
        figures: The task's figures by name: in percent, or in the targets' unit if named ..._error. Of a task without
            `meter`: `accuracy`.
    """

    accuracy: float
    loss: float
    samples: int
    figures: Mapping[str, float] = field(default_factory=dict)


def fit(
    state: TrainingState,
    batches: Batches,
    *,
    epochs: int,
    steps: int,
    accelerator: "Accelerator | None" = None,
    clip_norm: float | None = None,
    task: AnyTask | None = None,
    checkpoint_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    on_checkpoint: Callable[[TrainingState], None] = lambda state: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train `state` from where it stands to the end of `epochs` epochs; the last weights are the result.

    Args:
        state: What is trained, in place.
        batches: (epoch, first step) -> batches; both count from 0.
        epochs, steps: Number of epochs in all, and of optimizer steps per epoch, 1 or more each.
        accelerator: Mixed precision, processes and gradient accumulation; None: fp32, and whole batches.
        clip_norm: Largest norm of the gradient, above 0; None: no limit.
        task: Counts right answers, if it can; None: classification.
        checkpoint_every: Steps between two calls of `on_checkpoint`, 1 or more; None: only at the end of each epoch.
        on_step, on_epoch: Called after each step; at the end of each epoch, with the sums over all processes.
        on_checkpoint: Called when `state` should be saved, after `on_epoch`; never after a loss that is not finite.
        stop: Called after each step (with several processes, every 50 steps); True ends training.

    Raises:
        ValueError: A number is out of range, or there are fewer batches than `steps`.
        NotFinite: A loss or the network is not finite; a FloatingPointError. `first_to_go` then finds the layer.
        Interrupted: `stop` returned True; `on_checkpoint` was called before.
    """
    _check_numbers(epochs, steps, checkpoint_every, clip_norm)
    train = partial(train_step, state, accelerator=accelerator or make_accelerator(), clip_norm=clip_norm, task=task)
    guard = FiniteGuard(state, steps)
    while state.step < epochs * steps:
        epoch, start = divmod(state.step, steps)
        progress = state.progress = _progress(state, epochs, steps)
        seconds = progress.seconds
        state.wrapped.train()
        clock = time.perf_counter()
        for batch in epoch_batches(batches, epoch, start, steps):
            progress.lr = state.optimizer.param_groups[0]["lr"]
            sums = train(batch)
            guard.note(sums[0])
            progress.add(sums, samples(batch), seconds + time.perf_counter() - clock)
            on_step(progress)
            check_due, is_last = state.step % CHECK_EVERY == 0, progress.step == steps
            stopping = stop() if world() == 1 else check_due and anyone(stop())
            save_due = stopping or is_last or (checkpoint_every is not None and state.step % checkpoint_every == 0)
            if save_due or check_due:
                guard.check()
            if is_last:
                on_epoch(progress.over_processes())
            if save_due:
                on_checkpoint(state)
            if stopping and state.step < epochs * steps:
                raise Interrupted(state.step)


def _check_numbers(epochs: int, steps: int, checkpoint_every: int | None, clip_norm: float | None) -> None:
    """Refuse numbers with which nothing would be trained, or in a wrong way."""
    counts = {"epochs": epochs, "steps": steps, "checkpoint_every": 1 if checkpoint_every is None else checkpoint_every}
    for argument, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument} is {value!r}; expected a whole number of 1 or more")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is {clip_norm!r}; expected a number above 0, or None for no limit")


def _progress(state: TrainingState, epochs: int, steps: int) -> Progress:
    """Return the progress of the present epoch, which is new at its first step."""
    epoch, start = divmod(state.step, steps)
    return state.progress if start else Progress(epochs, steps, epoch, sums=torch.zeros(4, device=state.device))


def epoch_batches(batches: Batches, epoch: int, start: int, steps: int) -> Iterator[Any]:
    """Yield the batches of an epoch of `steps` steps, from step `start` on.

    Raises:
        ValueError: At the end, if there are fewer.
    """
    done = start
    for batch in islice(batches(epoch, start), steps - start):
        yield batch
        done += 1
    if done < steps:
        raise ValueError(f"the batches of epoch {epoch + 1} ended after {done} steps; expected {steps}")


def train_step(
    state: TrainingState,
    batch: Any,
    accelerator: "Accelerator",
    clip_norm: float | None = None,
    task: AnyTask | None = None,
) -> Tensor:
    """Do one optimizer step on this process's part of a batch.

    Args:
        state: What is trained, in place.
        batch: A tuple of tensors or lists, or tensors by name, all of the same length.
        accelerator: Mixed precision, processes and gradient accumulation.
        clip_norm: Largest norm of the gradient, above 0; None: no limit.
        task: Counts right answers; None: classification.

    Returns:
        (4,), on the device: total, task and distillation loss (means over the parts of the batch), and the number of
        right answers (nan if the task counts none).
    """
    task = task or Classification()
    seed_step(state)
    parts = micro_batches(batch, accelerator.gradient_accumulation_steps)
    sums = torch.zeros(4, device=state.device)
    for part in parts:
        with accelerator.accumulate(state.wrapped):
            with accelerator.autocast():
                losses = state.method(state.wrapped, part)
            accelerator.backward(losses.total)
        with torch.no_grad():
            hits = task.hits(losses.logits, part) if hasattr(task, "hits") else losses.task.new_full((), torch.nan)  # type: ignore[union-attr]
            sums += torch.stack([losses.total, losses.task, losses.distill, hits * len(parts)]) / len(parts)
    if clip_norm is not None:
        accelerator.clip_grad_norm_(state.model.parameters(), clip_norm)
        if state.partner is not None:
            accelerator.clip_grad_norm_(state.partner.parameters(), clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.schedule.step()
    state.step += 1
    if state.freezer is not None:
        state.freezer.step(state.step)
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    return sums


def seed_step(state: TrainingState) -> None:
    """Seed torch for the next step by (seed, step, rank), so that no state of a generator has to be saved."""
    torch.manual_seed(int(np.random.SeedSequence((state.seed, state.step, rank())).generate_state(1)[0]))


def samples(batch: Any) -> int:
    """Return the number of samples in `batch`, a tuple or a mapping of tensors or lists of the same length."""
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])


def micro_batches(batch: Any, parts: int) -> list[Any]:
    """Split `batch` into `parts` batches of equal length; ValueError if that is impossible."""
    if parts == 1:
        return [batch]
    if samples(batch) % parts:
        raise ValueError(
            f"a batch of {samples(batch)} does not split into {parts} equal parts; change train.accumulate"
        )
    if isinstance(batch, Mapping):
        return [dict(zip(batch, part, strict=True)) for part in micro_batches(tuple(batch.values()), parts)]
    size = samples(batch) // parts
    return [tuple(x[i * size : (i + 1) * size] for x in batch) for i in range(parts)]


@torch.no_grad()
@without_autocast
def evaluate(model: nn.Module, batches: Iterable[Any], task: AnyTask | None = None) -> Evaluation:
    """Evaluate `model` in eval mode, in fp32 also under autocast; the mode of each module is restored.

    Args:
        model: Any network that `task` understands.
        batches: The batches; with several processes, each passes its part, and all get the result over all parts.
            Batches without a sample are left out.
        task: Computes logits and loss, and figures by its `hits` or `meter`; None: classification, by top-1 accuracy.

    Raises:
        ValueError: There is no sample.
    """
    task = task or Classification()
    counts = getattr(task, "hits", None)
    meter = task.meter() if hasattr(task, "meter") else None  # type: ignore[union-attr]
    hits, loss, count = 0.0, 0.0, 0  # the sums become tensors of the device: on a GPU no batch waits for another
    with modes_kept(model):
        model.eval()
        for batch in batches:
            if not samples(batch):  # whose mean loss is NaN
                continue
            logits = task.logits(model, batch)
            hits += torch.as_tensor(counts(logits, batch)).double() if counts else 0.0
            if meter is not None:
                meter.update(logits, batch)
            loss += torch.as_tensor(task.loss(logits, batch)).double() * samples(batch)
            count += samples(batch)
    hits, loss = float(hits), float(loss)
    if world() > 1:
        device = next(model.parameters()).device
        figures = sum_over_processes(torch.tensor([hits, loss, count], dtype=torch.float64, device=device)).tolist()
        hits, loss, count = figures[0], figures[1], int(figures[2])
    if not count:
        raise ValueError("batches are empty; expected at least one to evaluate on")
    accuracy = 100 * hits / count if counts else math.nan
    return Evaluation(accuracy, loss / count, count, {"accuracy": accuracy} if meter is None else meter.compute())
