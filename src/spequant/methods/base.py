"""The interface of methods, and what several of them share. Each method has its own file."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
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
    """The losses of one batch, and the student's logits.

    Attributes:
        total: The loss to call `backward` on, 0-dim: task + weight x distill + the penalties of the quantizers, unless
            the method's equation says otherwise.
        task: Loss on the labels, 0-dim.
        distill: Loss to the teacher before its weight, 0-dim; 0 without a teacher.
        logits: Logits of the student, detached, in the shape that the task returns, e.g. (batch, classes).
    """

    total: Tensor
    task: Tensor
    distill: Tensor
    logits: Tensor


class Method(Protocol):
    """Computes the losses of a model on a batch.

    A method may have networks that learn in addition to the model. It then has an attribute `trained`, an nn.Module
    that contains them: training loops give its parameters to the optimizer and save its state in checkpoints.
    """

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        """Return the losses of one batch, with gradient.

        Args:
            model: The prepared network; it may be compiled or distributed.
            batch: A batch in the form that the method's task reads.

        Raises:
            ValueError: `model` has no quantizer, and is not marked with `allow_float`.
        """
        ...


@dataclass(frozen=True)
class Start:
    """What a training run passes to the settings of a method to build it.

    Attributes:
        network: The float network that the student starts from; it can be the teacher.
        student: The prepared network that learns, in its present state.
        task: The task of the batches.
        steps: Calls of the method in the whole training.
        seed: Seed of the run.
        quantized: bits -> `network`, prepared at these bits and calibrated.
        load: (network, path) -> None; loads float weights from a file or a run's folder into a network.
        accumulate: Calls of the method per step of the optimizer.
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
class MethodSettings(ABC):
    """Base of the options of a method. Each method nests its options in its class, as `Settings`."""

    @abstractmethod
    def build(self, start: Start) -> Method:
        """Return the method for one run."""

    def check_student(self, act_bits: int | None, *, mixed: bool) -> None:  # noqa: B027 (most take any student)
        """Check that the method can train a student with activations of this precision.

        Args:
            act_bits: Bits of the activations; None: float.
            mixed: Whether some layers have other bits than `act_bits`.

        Raises:
            ValueError: The method needs other activation bits.
        """

    @property
    def fixed_teachers(self) -> tuple["TaughtSettings", ...]:
        """The settings, out of these, that name the weights of a float teacher that stays fixed during the run."""
        return ()

    @property
    def weights_begin_float(self) -> bool:
        """Whether weights get their ranges in the course of training, so that neither averages nor frozen weights fit
        those before."""
        return False

    @property
    def soft_labels_file(self) -> tuple[Path, float] | None:
        """The file of a teacher's answers that batches are to bring, and T at which they are read; None: none."""
        return None


@dataclass(frozen=True, kw_only=True)
class TaughtSettings(MethodSettings):
    """Base of the options of methods with a separate float teacher."""

    teacher: Path | None = None
    """file or run's folder with the teacher's float weights; None: the float network that the student starts from"""

    @property
    def fixed_teachers(self) -> tuple["TaughtSettings", ...]:
        return (self,)

    def teacher_of(self, start: Start) -> nn.Module:
        """Return `start.network` with the teacher's weights. Methods copy it before they use it."""
        if self.teacher is not None:
            start.load(start.network, self.teacher)
        return start.network


class CountsCalls:
    """Base of methods that draw random numbers or change during training.

    `step` is the number of calls so far; checkpoints save it.
    """

    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.step = int(state["step"])


def trained_by(method: object) -> nn.Module | None:
    """Return the networks that `method` trains in addition to the model, or None."""
    return getattr(method, "trained", None)


def frozen(network: nn.Module) -> nn.Module:
    """Return a copy of `network` for use as a teacher: in eval mode, without gradients."""
    return copied(network).eval().requires_grad_(False)


FLOAT_ALLOWED = "spequant_allow_float"
"""Attribute of a float network that methods may train."""


def allow_float(network: nn.Module) -> nn.Module:
    """Mark `network` as one that methods may train although nothing in it is quantized, and return it."""
    setattr(network, FLOAT_ALLOWED, True)
    return network


def penalties(model: nn.Module, leaving: Iterable[Quantizer] = ()) -> Tensor | float:
    """Return the sum of the loss terms of the quantizers but those of `leaving`, e.g. PACT's L2 term on its clip.

    Ranges with the same factor are summed together, so that the number of operations does not grow with the layers.

    Raises:
        ValueError: `model` has no quantizer and is not marked with `allow_float`, e.g. because the result of `prepare`
            was not kept.
    """
    ranges: dict[float, list[Tensor]] = {}
    is_trainable, left = False, {id(q) for q in leaving}
    for module in model.modules():
        is_trainable = is_trainable or isinstance(module, Quantizer) or hasattr(module, FLOAT_ALLOWED)
        if id(module) in left or not isinstance(module, Quantizer):
            continue
        if (decayed := module.decayed()) is not None:
            stored: Any = decayed[0]
            parameter = stored.full_tensor() if hasattr(stored, "full_tensor") else stored  # sharded by fully_shard
            ranges.setdefault(decayed[1], []).append(parameter.flatten())
    if not is_trainable:
        raise ValueError(
            f"{type(model).__name__} has no quantizer: what would be trained is a float network. spequant.prepare "
            "leaves its argument as it is and returns the quantized model: model = spequant.prepare(model, ...). To "
            "train a float network on purpose: spequant.methods.allow_float(model)"
        )
    terms = [0.5 * factor * torch.cat(group).square().sum() for factor, group in ranges.items()]
    return torch.stack(terms).sum() if terms else 0.0


def check_weight(value: float, argument: str) -> None:
    """Raise a ValueError unless the weight of a loss is 0 or more."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{argument} is {value!r}; expected a finite number of 0 or more")


def check_steps(value: int) -> None:
    """Raise a ValueError unless the number of calls in training is a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"steps is {value!r}; expected the number of calls in the whole training, 1 or more")


def check_temperature(value: float, argument: str = "temperature") -> None:
    """Raise a ValueError unless the temperature of a softmax is above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{argument} is {value!r}; expected a finite number above 0, e.g. 1 to 4")
