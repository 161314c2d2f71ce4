"""Trains some steps once more, to find the layer whose numbers were the first that were not finite.

All random draws follow from the number of the step, so that an earlier state leads to exactly the same numbers.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spequant.methods.tasks import AnyTask
from spequant.names import some_of
from spequant.processes import sum_over_processes
from spequant.train.guard import LOWER_RATE, NotFinite, all_finite, in_any_process, not_finite, step_in_words
from spequant.train.launch import make_accelerator
from spequant.train.loop import Batches, epoch_batches, micro_batches, seed_step, train_step
from spequant.train.state import TrainingState

if TYPE_CHECKING:
    from accelerate import Accelerator


def first_to_go(
    state: TrainingState,
    batches: Batches,
    error: NotFinite,
    *,
    steps: int,
    accelerator: "Accelerator | None" = None,
    clip_norm: float | None = None,
    task: AnyTask | None = None,
) -> str:
    """Find the layers whose weights, ranges or activations were the first that were not finite.

    Training is repeated at full speed as far as `error.finite` steps; after each further step the network is checked.
    The passes of step `error.step` itself are then watched layer by layer. Every process has to call it.

    Args:
        state: A state before step `error.step`, such as that of a checkpoint; it is trained, in place.
        batches: As `fit` had them.
        error: What `fit` raised.
        steps: As `fit` had it.
        accelerator: As `fit` had it.
        clip_norm: As `fit` had it.
        task: As `fit` had it.

    Returns:
        Epoch, step and these layers, in words.

    Raises:
        ValueError: `state` is of a later step.
    """
    accelerator = accelerator or make_accelerator()
    last = error.noticed if error.step is None else error.step - 1
    if state.step > last:
        raise ValueError(f"state is of step {state.step}; expected one of step {min(last, error.finite)} or before it")
    state.wrapped.train()
    while state.step < last:
        epoch, start = divmod(state.step, steps)
        for batch in epoch_batches(batches, epoch, start, steps):
            train_step(state, batch, accelerator, clip_norm, task)
            if state.step > error.finite and int(sum_over_processes((~all_finite(state.model)).long())):
                return _broken_network(state, error, steps)
            if state.step == last:
                break
    culprits: list[str] = []
    if error.step is not None:
        batch = next(epoch_batches(batches, *divmod(last, steps), steps))
        culprits = in_any_process(_watched_passes(state, batch, accelerator))
    if not culprits:
        return (
            f"{error.what}, and all is finite when the steps are repeated: is the device at fault, or an operation "
            "that is not deterministic?"
        )
    first = some_of(culprits, separator="; ")
    return f"the loss is not finite at {step_in_words(last + 1, steps)}; the first to go: {first}"


def _broken_network(state: TrainingState, error: NotFinite, steps: int) -> str:
    """Describe a network that is not finite since the step that was just done."""
    wrong = some_of(not_finite(state.model), separator="; ")
    if error.step == state.step + 1:
        when = step_in_words(state.step + 1, steps)
        return f"the loss is not finite at {when}; the first to go: {wrong}, made so by the step before{LOWER_RATE}"
    return f"the network is not finite after {step_in_words(state.step, steps)}; the first to go: {wrong}{LOWER_RATE}"


def _watched_passes(state: TrainingState, batch: Any, accelerator: "Accelerator") -> list[str]:
    """Run the forward passes of the next step, and name what is not finite in them.

    Returns:
        Layers whose output is not finite, in the order in which they run; if there are none, losses.
    """
    wrong: list[str] = []

    def watcher(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, inputs: Any, output: Any) -> None:
            if not _are_finite(output if isinstance(output, tuple | list) else [output]):
                wrong.append(f"activations that leave {name}")

        return watch

    if not _are_finite(batch.values() if isinstance(batch, Mapping) else batch):
        wrong.append("the batch's inputs")
    seed_step(state)
    with ExitStack() as hooks, torch.no_grad():
        for name, module in state.model.named_modules():  # not the compiled one, which does not call hooks
            if name and not isinstance(module, nn.Sequential | nn.ModuleList):
                hooks.callback(module.register_forward_hook(watcher(name)).remove)
        for part in micro_batches(batch, accelerator.gradient_accumulation_steps):
            with accelerator.autocast():
                losses = state.method(state.model, part)
            parts = {"on the labels": losses.task, "of distillation": losses.distill, "in all": losses.total}
            wrong += [f"the loss {name}" for name, value in parts.items() if not torch.isfinite(value)]
    layers = [line for line in dict.fromkeys(wrong) if not line.startswith("the loss")]
    return layers or list(dict.fromkeys(wrong))


def _are_finite(values: Any) -> bool:
    """Tell whether the floating-point tensors among `values` are finite."""
    return all(bool(torch.isfinite(v).all()) for v in values if isinstance(v, Tensor) and v.is_floating_point())
