"""Numbers that go wrong: a loss that is not finite is noticed without waiting for the device, and traced to layers."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from spequant.processes import gathered, sum_over_processes
from spequant.quantizers import Quantizer
from spequant.train.state import TrainingState
from spequant.wording import some_of

ADVICE = ": lower the learning rate, or clip gradients (train.clip_norm)"


class FiniteGuard:
    """Keeps the number of the first step whose loss was not finite on the device, and the state of the last check.

    `note(loss)` each step costs one small kernel. `check()` reads the flag, and whether the network is finite, which
    the last step's loss does not tell; where something is wrong it goes back to the last check, trains those steps
    again (all draws follow from the step's number) and raises FloatingPointError with epoch, step and the layers whose
    weights, ranges or activations were the first that were not finite.
    """

    def __init__(
        self,
        state: TrainingState,
        step: Callable[[Any], Tensor],
        batches: Callable[[int, int], Iterable[Any]],
        steps: int,
    ):
        self.state, self.step, self.batches, self.steps = state, step, batches, steps
        self._keep()

    def _keep(self) -> None:
        vars(self).pop("snapshot", None)  # whose memory the next one takes
        self.snapshot = self.state.capture()
        self.bad = torch.zeros((), dtype=torch.int64, device=self.state.device)

    def note(self, loss: Tensor) -> None:
        """`loss`: 0-dim, of the step just done."""
        self.bad = torch.where((self.bad == 0) & ~torch.isfinite(loss), self.state.step, self.bad)

    def check(self) -> None:
        if int(sum_over_processes(((self.bad > 0) | ~_finite(self.state.model)).long())):
            self._trace()
        self._keep()

    def _trace(self) -> None:
        last = self.state.step
        self.state.restore(self.snapshot)
        self.state.wrapped.train()
        while self.state.step < last:
            epoch, start = divmod(self.state.step, self.steps)
            for batch in self.batches(epoch, start):
                self._look(epoch, start, batch)
                self.step(batch)
                start += 1
                if self.state.step >= last or start == self.steps:
                    break
        if wrong := not_finite(self.state.model):
            epoch, step = divmod(last - 1, self.steps)
            when = f"epoch {epoch + 1}, step {step + 1} (step {last} of the run)"
            raise FloatingPointError(
                f"the network is not finite after {when}; the first to go: {some_of(wrong, separator='; ')}{ADVICE}"
            )
        raise FloatingPointError(
            f"the loss was not finite between steps {self.snapshot.numbers['step'] + 1} and {last}, and is finite when "
            "they are repeated: is the device at fault, or an operation that is not deterministic?"
        )

    def _look(self, epoch: int, start: int, batch: Any) -> None:
        """FloatingPointError where something is not finite at this step, before it is made."""
        found = not_finite(self.state.model)
        wrong = found
        if not wrong:
            step = getattr(self.state.method, "state_dict", dict)()
            wrong = self._activations(batch)
            if hasattr(self.state.method, "load_state_dict"):
                self.state.method.load_state_dict(step)  # type: ignore[attr-defined]
        everyone = [line for lines in gathered(wrong) for line in lines]
        if not everyone:
            return
        when = f"epoch {epoch + 1}, step {start + 1} (step {self.state.step + 1} of the run)"
        first = some_of(list(dict.fromkeys(everyone)), separator="; ") + (
            f", made so by the step before{ADVICE}" if found else ""
        )
        raise FloatingPointError(f"the loss is not finite at {when}; the first to go: {first}")

    def _activations(self, batch: Any) -> list[str]:
        """Layers whose output is not finite in this step's passes, in the order in which they ran; or the loss."""
        wrong: list[str] = []

        def reader(name: str) -> Callable[..., None]:
            def read(module: nn.Module, inputs: Any, output: Any) -> None:
                values = output if isinstance(output, tuple | list) else [output]
                if not all(torch.isfinite(v).all() for v in values if isinstance(v, Tensor) and v.is_floating_point()):
                    wrong.append(f"activations that leave {name}")

            return read

        inputs = batch.values() if isinstance(batch, Mapping) else batch
        if any(not torch.isfinite(x).all() for x in inputs if isinstance(x, Tensor) and x.is_floating_point()):
            wrong.append("the batch's inputs")
        kept = {name: value.clone() for name, value in self.state.model.named_buffers()}
        with ExitStack() as hooks:
            for name, module in self.state.model.named_modules():
                if name and not isinstance(module, nn.Sequential | nn.ModuleList):
                    hooks.callback(module.register_forward_hook(reader(name)).remove)
            with torch.no_grad():
                losses = self.state.method(self.state.model, batch)
        with torch.no_grad():
            for name, value in self.state.model.named_buffers():
                value.copy_(kept[name])
        if not wrong:
            parts = {"on the labels": losses.task, "of distillation": losses.distill, "in all": losses.total}
            wrong = [f"the loss {what}" for what, value in parts.items() if not torch.isfinite(value)]
        return wrong


def _finite(model: nn.Module) -> Tensor:
    """Whether all parameters and buffers are, 0-dim, without waiting for the device."""
    tensors = [x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()]
    return torch.stack([torch.isfinite(x).all() for x in tensors]).all()


def not_finite(model: nn.Module) -> list[str]:
    """Ranges, then other parameters and buffers, of `model` that hold NaN or Inf, in words."""
    ranges = {id(p): q.name for q in model.modules() if isinstance(q, Quantizer) for p in q.parameters()}
    wrong = [
        (f"the range of {ranges[id(p)]}" if id(p) in ranges else name, id(p) not in ranges)
        for name, p in [*model.named_parameters(), *model.named_buffers()]
        if not torch.isfinite(p).all()
    ]
    return [name for name, _ in sorted(wrong, key=lambda pair: pair[1])]
