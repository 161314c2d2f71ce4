"""Some steps of training made once more, to name the layer whose numbers were the first that were not finite.

All draws follow from the number of a step, so that an earlier state leads to the very same numbers.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spequant.methods.tasks import Counted
from spequant.names import some_of
from spequant.processes import sum_over_processes
from spequant.train.guard import ADVICE, NotFinite, all_finite, in_any_process, in_words, not_finite
from spequant.train.launch import make_accelerator
from spequant.train.loop import Batches, epoch_batches, parts_of, seed_step, train_step
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
    task: Counted | None = None,
) -> str:
    """In words: epoch, step and the layers whose weights, ranges or activations were the first that were not finite.

    state: of a step before `error.step`, such as a checkpoint's; it is trained at full speed as far as the step before
      that one, whose passes are then watched layer by layer. From `error.finite` steps on, the network is looked at
      after each step.
    batches, steps, accelerator, clip_norm, task: as `fit` had them. Every process has to call it.

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
                return _network(state, error, steps)
            if state.step == last:
                break
    found: list[str] = []
    if error.step is not None:
        batch = next(epoch_batches(batches, *divmod(last, steps), steps))
        found = in_any_process(_watched(state, batch, accelerator))
    if not found:
        return (
            f"{error.what}, and all is finite when the steps are repeated: is the device at fault, or an operation "
            "that is not deterministic?"
        )
    return f"the loss is not finite at {in_words(last + 1, steps)}; the first to go: {some_of(found, separator='; ')}"


def _network(state: TrainingState, error: NotFinite, steps: int) -> str:
    """Of a network that the step just done has made so."""
    wrong = some_of(not_finite(state.model), separator="; ")
    if error.step == state.step + 1:
        when = in_words(state.step + 1, steps)
        return f"the loss is not finite at {when}; the first to go: {wrong}, made so by the step before{ADVICE}"
    return f"the network is not finite after {in_words(state.step, steps)}; the first to go: {wrong}{ADVICE}"


def _watched(state: TrainingState, batch: Any, accelerator: "Accelerator") -> list[str]:
    """Layers whose output is not finite in the passes of the step to come, in the order in which they run; or the
    loss. The step itself is not made."""
    wrong: list[str] = []

    def watcher(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, inputs: Any, output: Any) -> None:
            if not _finite(output if isinstance(output, tuple | list) else [output]):
                wrong.append(f"activations that leave {name}")

        return watch

    if not _finite(batch.values() if isinstance(batch, Mapping) else batch):
        wrong.append("the batch's inputs")
    seed_step(state)
    with ExitStack() as hooks, torch.no_grad():
        for name, module in state.model.named_modules():  # not the compiled one, which runs past hooks
            if name and not isinstance(module, nn.Sequential | nn.ModuleList):
                hooks.callback(module.register_forward_hook(watcher(name)).remove)
        for part in parts_of(batch, accelerator.gradient_accumulation_steps):
            with accelerator.autocast():
                losses = state.method(state.model, part)
            parts = {"on the labels": losses.task, "of distillation": losses.distill, "in all": losses.total}
            wrong += [f"the loss {what}" for what, value in parts.items() if not torch.isfinite(value)]
    layers = [line for line in dict.fromkeys(wrong) if not line.startswith("the loss")]
    return layers or list(dict.fromkeys(wrong))


def _finite(values: Any) -> bool:
    """Whether the floating-point tensors among `values` are."""
    return all(bool(torch.isfinite(v).all()) for v in values if isinstance(v, Tensor) and v.is_floating_point())
