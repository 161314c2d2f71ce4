"""A loss that is not finite is noticed without waiting for the device in each step, and at no cost in memory.

`replay.py` then finds the layer that went wrong first, by training the last steps once more.
"""

import torch
from torch import Tensor, nn

from spequant.names import some_of
from spequant.processes import gathered, sum_over_processes
from spequant.quantizers import Quantizer
from spequant.train.state import TrainingState

LOWER_RATE = ": lower the learning rate, or clip gradients (train.clip_norm)"
HINT = (
    ". To find the first layer, call spequant.train.first_to_go(state, batches, error, steps=...) with this error and "
    "a state of an earlier step"
)


class NotFinite(FloatingPointError):
    """Training went wrong: a loss or the network is not finite.

    `message` says what is not finite; `str` of the error adds how to find the layer.

    Args:
        what: The loss or the network, and the step, in words.
        wrong: The tensors that are not finite by now, in words.
        step: Number of the first step, from 1, whose loss was not finite; None: all losses were finite, but the network
            is not.
        finite: Number of steps after which the network and all losses were last found finite.
        noticed: Number of steps after which something was found not to be finite.
    """

    def __init__(self, what: str, wrong: list[str], *, step: int | None, finite: int, noticed: int):
        now = f"; after step {noticed} these are not: {some_of(wrong, separator='; ')}" if wrong else ""
        self.message = f"{what}{now}{LOWER_RATE}"
        super().__init__(self.message + HINT)
        self.what, self.step, self.finite, self.noticed = what, step, finite, noticed


class FiniteGuard:
    """Records the number of the first step whose loss was not finite, as one number on the device.

    `note` costs one small kernel per step. `check` reads that number, and whether the network is finite, which the
    loss of the last step does not show.

    Args:
        state: The training that is watched.
        steps: Steps per epoch, only for messages.
    """

    def __init__(self, state: TrainingState, steps: int):
        self.state, self.steps, self.checked = state, steps, state.step
        self.bad = torch.zeros((), dtype=torch.int64, device=state.device)

    def note(self, loss: Tensor) -> None:
        """Record the loss, 0-dim, of the step that was just done."""
        self.bad = torch.where((self.bad == 0) & ~torch.isfinite(loss), self.state.step, self.bad)

    def check(self) -> None:
        """Check the losses so far and the network; every process has to call it.

        Raises:
            NotFinite: A loss was not finite in some process, or the network is not.
        """
        now = self.state.step
        if int(sum_over_processes(((self.bad > 0) | ~all_finite(self.state.model)).long())) == 0:
            self.checked = now
            return
        bad = min((step for step in gathered(int(self.bad)) if step), default=None)
        what = f"the network is not finite after {step_in_words(now, self.steps)}"
        if bad is not None:
            what = f"the loss is not finite at {step_in_words(bad, self.steps)}"
        raise NotFinite(what, not_finite(self.state.model), step=bad, finite=self.checked, noticed=now)


def step_in_words(step: int, steps: int) -> str:
    """Name the `step`-th step of a run, from 1, whose epochs have `steps` steps."""
    epoch, within = divmod(step - 1, steps)
    return f"epoch {epoch + 1}, step {within + 1} (step {step} of the run)"


def all_finite(model: nn.Module) -> Tensor:
    """Return whether all parameters and buffers are finite, as a 0-dim tensor, without waiting for the device."""
    tensors = [x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()]
    return torch.stack([torch.isfinite(x).all() for x in tensors]).all()


def not_finite(model: nn.Module) -> list[str]:
    """Name the tensors of `model` that hold NaN or Inf in some process; every process has to call it.

    Returns:
        Ranges of quantizers first, then other parameters and buffers.
    """
    ranges = {id(p): q.name for q in model.modules() if isinstance(q, Quantizer) for p in q.parameters()}
    wrong = [
        (f"the range of {ranges[id(p)]}" if id(p) in ranges else name, id(p) not in ranges)
        for name, p in [*model.named_parameters(), *model.named_buffers()]
        if not torch.isfinite(p).all()
    ]
    return in_any_process([name for name, _ in sorted(wrong, key=lambda pair: pair[1])])


def in_any_process(lines: list[str]) -> list[str]:
    """Return the `lines` of all processes, each line once, in order of rank; every process has to call it."""
    return list(dict.fromkeys(line for lines_of_rank in gathered(lines) for line in lines_of_rank))
