"""Numbers that go wrong: a loss that is not finite is noticed without waiting for the device, at no cost in memory.

Which layer went first is found by training those steps once more: `replay.py`.
"""

import torch
from torch import Tensor, nn

from spequant.names import some_of
from spequant.processes import gathered, sum_over_processes
from spequant.quantizers import Quantizer
from spequant.train.state import TrainingState

ADVICE = ": lower the learning rate, or clip gradients (train.clip_norm)"
HINT = (
    ". Which layer was the first is found by spequant.train.first_to_go(state, batches, error, steps=...), given this "
    "error and a state of an earlier step"
)


class NotFinite(FloatingPointError):
    """Training went wrong: `told` says it in words, the error itself with how to learn the layer.

    what: the loss or the network, and the step. wrong: what is not finite by now, in words.
    step: number of the first step, from 1, whose loss was not finite; None: each loss was, the network is not.
    finite: steps done when network and losses were last known to be finite. noticed: steps done when they were not.
    """

    def __init__(self, what: str, wrong: list[str], *, step: int | None, finite: int, noticed: int):
        now = f"; after step {noticed} these are not: {some_of(wrong, separator='; ')}" if wrong else ""
        self.told = f"{what}{now}{ADVICE}"
        super().__init__(self.told + HINT)
        self.what, self.step, self.finite, self.noticed = what, step, finite, noticed


class FiniteGuard:
    """Keeps the number of the first step whose loss was not finite, one number on the device.

    `note(loss)` each step costs one small kernel. `check()` reads that number, and whether the network is finite,
    which the last step's loss does not tell. steps: of an epoch, for words alone.
    """

    def __init__(self, state: TrainingState, steps: int):
        self.state, self.steps, self.checked = state, steps, state.step
        self.bad = torch.zeros((), dtype=torch.int64, device=state.device)

    def note(self, loss: Tensor) -> None:
        """`loss`: 0-dim, of the step just done."""
        self.bad = torch.where((self.bad == 0) & ~torch.isfinite(loss), self.state.step, self.bad)

    def check(self) -> None:
        """Every process has to call it. NotFinite: a loss, or by now the network, was not finite in some process."""
        now = self.state.step
        if int(sum_over_processes(((self.bad > 0) | ~all_finite(self.state.model)).long())) == 0:
            self.checked = now
            return
        bad = min((step for step in gathered(int(self.bad)) if step), default=None)
        what = f"the network is not finite after {in_words(now, self.steps)}"
        if bad is not None:
            what = f"the loss is not finite at {in_words(bad, self.steps)}"
        raise NotFinite(what, not_finite(self.state.model), step=bad, finite=self.checked, noticed=now)


def in_words(step: int, steps: int) -> str:
    """The `step`-th of a run, from 1, whose epochs have `steps`."""
    epoch, within = divmod(step - 1, steps)
    return f"epoch {epoch + 1}, step {within + 1} (step {step} of the run)"


def all_finite(model: nn.Module) -> Tensor:
    """Whether all parameters and buffers are, 0-dim, without waiting for the device."""
    tensors = [x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()]
    return torch.stack([torch.isfinite(x).all() for x in tensors]).all()


def not_finite(model: nn.Module) -> list[str]:
    """Ranges, then other parameters and buffers, of `model` that hold NaN or Inf in any process, in words. Every
    process has to call it."""
    ranges = {id(p): q.name for q in model.modules() if isinstance(q, Quantizer) for p in q.parameters()}
    wrong = [
        (f"the range of {ranges[id(p)]}" if id(p) in ranges else name, id(p) not in ranges)
        for name, p in [*model.named_parameters(), *model.named_buffers()]
        if not torch.isfinite(p).all()
    ]
    return in_any_process([name for name, _ in sorted(wrong, key=lambda pair: pair[1])])


def in_any_process(lines: list[str]) -> list[str]:
    """`lines` of every process, each once, in order of rank."""
    return list(dict.fromkeys(line for found in gathered(lines) for line in found))
