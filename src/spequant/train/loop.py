"""The one training loop, and evaluation. Builds nothing: state and batches come from outside; knows of no files."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from spequant.calibration.batch_norm import modes_kept
from spequant.methods.tasks import Classification, Counted
from spequant.processes import anyone, rank, sum_over_processes, world
from spequant.train.guard import FiniteGuard
from spequant.train.launch import make_accelerator
from spequant.train.state import Progress, TrainingState

if TYPE_CHECKING:
    from accelerate import Accelerator

Batches = Callable[[int, int], Iterable[Any]]
"""(epoch, first step) -> this process's part of the batches of that epoch, from that step on"""
CHECK_EVERY = 50
"""steps between two looks at whether the loss is finite: each waits for the device"""


class Interrupted(Exception):
    """Training stopped because it was asked to; what was done is in the last checkpoint."""

    def __init__(self, step: int):
        super().__init__(f"interrupted after step {step}")
        self.step = step


@dataclass(frozen=True)
class Evaluation:
    """accuracy: percent; loss: mean cross-entropy; samples: how many."""

    accuracy: float
    loss: float
    samples: int


def fit(
    state: TrainingState,
    batches: Batches,
    *,
    epochs: int,
    steps: int,
    accelerator: "Accelerator | None" = None,
    clip_norm: float | None = None,
    task: Counted | None = None,
    checkpoint_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
    on_checkpoint: Callable[[TrainingState], None] = lambda state: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from where `state` stands to `epochs` epochs of `steps` optimizer steps. The last weights are the result.

    accelerator: mixed precision, processes and gradient accumulation (its `gradient_accumulation_steps` parts of each
      batch); None: fp32, one pass.
    clip_norm: largest norm of the gradient, above 0; None: any.
    task: counts what is right; None: classification.
    on_checkpoint: called when `state` should be saved: every `checkpoint_every` steps and at the end of each epoch,
      after `on_epoch`; never once the loss was not finite.
    stop: asked after each step (with several processes every 50); once true, `on_checkpoint`, then `Interrupted`.

    NotFinite, a FloatingPointError: the loss was not finite; it names epoch, step and what is not finite by now.
      `first_to_go` then finds the layer.
    """
    step = partial(train_step, state, accelerator=accelerator or make_accelerator(), clip_norm=clip_norm, task=task)
    guard = FiniteGuard(state, steps)
    while state.step < epochs * steps:
        epoch, start = divmod(state.step, steps)
        if start == 0:
            state.progress = Progress(epochs, steps, epoch, sums=torch.zeros(4, device=state.device))
        progress, before = state.progress, state.progress.seconds
        state.wrapped.train()
        clock = time.perf_counter()
        for batch in epoch_batches(batches, epoch, start, steps):
            progress.lr = state.optimizer.param_groups[0]["lr"]
            sums = step(batch)
            guard.note(sums[0])
            progress.add(sums, samples(batch), before + time.perf_counter() - clock)
            on_step(progress)
            looks, last = state.step % CHECK_EVERY == 0, progress.step == steps
            asked = stop() if world() == 1 else looks and anyone(stop())
            due = asked or last or (checkpoint_every is not None and state.step % checkpoint_every == 0)
            if due or looks:
                guard.check()
            if last:
                on_epoch(progress.over_processes())
            if due:
                on_checkpoint(state)
            if asked and state.step < epochs * steps:
                raise Interrupted(state.step)


def epoch_batches(batches: Batches, epoch: int, start: int, steps: int) -> Iterator[Any]:
    """Of an epoch of `steps` steps those from step `start` on. ValueError at the end: there are fewer."""
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
    task: Counted | None = None,
) -> Tensor:
    """One optimizer step on this process's part of a batch; (4,): total, task, distill (means over parts), hits."""
    task = task or Classification()
    seed_step(state)
    parts = parts_of(batch, accelerator.gradient_accumulation_steps)
    sums = torch.zeros(4, device=state.device)
    for part in parts:
        with accelerator.accumulate(state.wrapped):
            with accelerator.autocast():
                losses = state.method(state.wrapped, part)
            accelerator.backward(losses.total)
        with torch.no_grad():
            hits = task.hits(losses.logits, part) * len(parts)
            sums += torch.stack([losses.total, losses.task, losses.distill, hits]) / len(parts)
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
    """Dropout's numbers in the step to come are arithmetic, too: nothing of them has to be saved."""
    torch.manual_seed(int(np.random.SeedSequence((state.seed, state.step, rank())).generate_state(1)[0]))


def samples(batch: Any) -> int:
    """How many samples there are in `batch`, tensors of one length, in a tuple or by name."""
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])


def parts_of(batch: Any, parts: int) -> list[Any]:
    """`batch` as `parts` batches of equal length."""
    if parts == 1:
        return [batch]
    if samples(batch) % parts:
        raise ValueError(
            f"a batch of {samples(batch)} does not split into {parts} equal parts; change train.accumulate"
        )
    if isinstance(batch, Mapping):
        return [dict(zip(batch, part, strict=True)) for part in parts_of(tuple(batch.values()), parts)]
    return list(zip(*(x.chunk(parts) for x in batch), strict=True))


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Any], task: Counted | None = None) -> Evaluation:
    """Top-1 accuracy and mean loss of `model` in eval mode, in fp32. Its modules' modes are put back.

    Several processes: each gives its part of the batches; all get the figures of the whole.
    """
    task = task or Classification()
    hits, loss, count = 0, 0.0, 0
    with modes_kept(model):
        model.eval()
        for batch in batches:
            logits = task.logits(model, batch)
            hits += int(task.hits(logits, batch))
            loss += float(task.loss(logits, batch)) * samples(batch)
            count += samples(batch)
    if world() > 1:
        device = next(model.parameters()).device
        figures = sum_over_processes(torch.tensor([hits, loss, count], dtype=torch.float64, device=device)).tolist()
        hits, loss, count = int(figures[0]), figures[1], int(figures[2])
    if not count:
        raise ValueError("batches are empty; expected at least one to evaluate on")
    return Evaluation(100 * hits / count, loss / count, count)
