"""What a method returns, and what several methods share. The methods themselves have a file each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spequant.methods.tasks import Task
from spequant.networks import copied
from spequant.quantizers import Quantizer


@dataclass(frozen=True)
class Losses:
    """0-dim tensors. total: what to call backward on (task + weight x distill + the quantizers' penalties);
    task: on the labels; distill: to the teacher, before its weight (0 where there is none)."""

    total: Tensor
    task: Tensor
    distill: Tensor
    logits: Tensor  # the student's, as its task makes them: (batch, classes) ...; detached


class Method(Protocol):
    """One with networks of its own that learn beside the model has them under `trained`, an nn.Module, too: training
    loops give its parameters to the optimizer and its state to checkpoints."""

    def __call__(self, model: nn.Module, batch: Any) -> Losses: ...


@dataclass(frozen=True)
class Start:
    """What a training run has at hand when its method is made.

    Args:
        network: the float network that the student starts from, which may teach.
        student: the prepared network that learns, as it stands.
        task: of the run's batches.
        steps: calls of the method in all of training.
        seed: of the run.
        accumulate: calls that make one step of the optimizer.
        quantized: bits -> `network` prepared at these bits and calibrated.
        load: (network, path) loads float weights, of a file or a run's folder, into a network.
    """

    network: nn.Module
    student: nn.Module
    task: Task
    steps: int
    seed: int
    quantized: Callable[[int], nn.Module]
    load: Callable[[nn.Module, Path], None]
    accumulate: int = 1


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """The options of one method, checked when they are made. A method's class has its own as `Settings`."""

    def build(self, start: Start) -> Method:
        """The method, for one run."""
        raise NotImplementedError(f"{type(self).__qualname__} has no build")

    def check_student(self, act_bits: int | None, *, mixed: bool) -> None:
        """ValueError: no method for a student whose activations have `act_bits` (None: float); `mixed`: but for single
        layers, which have other bits."""

    @property
    def fixed_teachers(self) -> tuple["TaughtSettings", ...]:
        """Those of these settings that name the weights of a float teacher which learns nothing during the run."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TaughtSettings(MethodSettings):
    """Of methods with a separate float teacher."""

    teacher: Path | None = None
    """float weights of the teacher, a file or a run's folder; None: the float network that the student starts from"""

    @property
    def fixed_teachers(self) -> tuple["TaughtSettings", ...]:
        return (self,)

    def teacher_of(self, start: Start) -> nn.Module:
        """The float network with the teacher's weights. The start's own: methods copy it."""
        if self.teacher is not None:
            start.load(start.network, self.teacher)
        return start.network


class CountsCalls:
    """Of methods that draw, or change on the way: `step`, the number of calls so far, which a checkpoint holds."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.step = int(state["step"])


def trained_by(method: object) -> nn.Module | None:
    """The networks of `method`'s own that learn beside the model, or None."""
    return getattr(method, "trained", None)


def frozen(network: nn.Module) -> nn.Module:
    """A copy of `network` that learns nothing, in eval mode: a teacher."""
    return copied(network).eval().requires_grad_(False)


ALLOWED = "spequant_allow_float"


def allow_float(network: nn.Module) -> nn.Module:
    """`network` itself, marked as one that methods may train though nothing in it is quantized."""
    setattr(network, ALLOWED, True)
    return network


def penalties(model: nn.Module) -> Tensor | float:
    """Sum of the quantizers' own loss terms (PACT's L2 term on its clip): some operations in all, not some a layer.

    ValueError: `model` has no quantizer and `allow_float` was not said, as where the result of `prepare` was dropped.
    """
    ranges: dict[float, list[Tensor]] = {}
    known = False
    for module in model.modules():
        known = known or isinstance(module, Quantizer) or hasattr(module, ALLOWED)
        if isinstance(module, Quantizer) and (decayed := module.decayed()) is not None:
            stored: Any = decayed[0]
            whole = stored.full_tensor() if hasattr(stored, "full_tensor") else stored  # sharded by fully_shard
            ranges.setdefault(decayed[1], []).append(whole.flatten())
    if not known:
        raise ValueError(
            f"{type(model).__name__} has no quantizer: what would be trained is a float network. spequant.prepare "
            "leaves its argument as it is and returns the quantized model: model = spequant.prepare(model, ...). To "
            "train a float network on purpose: spequant.methods.allow_float(model)"
        )
    terms = [0.5 * factor * torch.cat(group).square().sum() for factor, group in ranges.items()]
    return torch.stack(terms).sum() if terms else 0.0


def check_weight(value: float, argument: str) -> None:
    if not value >= 0:
        raise ValueError(f"{argument} is {value!r}; expected a number of 0 or more")


def check_steps(value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"steps is {value!r}; expected how many calls training takes in all, 1 or more")


def check_temperature(value: float, argument: str = "temperature") -> None:
    if not value > 0:
        raise ValueError(f"{argument} is {value!r}; expected a number above 0, e.g. 1 to 4")
