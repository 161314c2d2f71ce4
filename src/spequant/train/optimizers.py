"""Optimisers and schedules from torch, with a group of their own for the quantizers' ranges."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn, optim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from spequant.names import named_or_imported
from spequant.quantizers import Quantizer

Schedule = Callable[[Optimizer, int], LRScheduler]
"""(optimizer, steps in all) -> what sets the learning rates, stepped once per training step."""


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, range_lr: float | None = None
) -> list[dict[str, Any]]:
    """Two groups: weights, at `lr` and `weight_decay`; ranges (PACT's clips, LSQ's steps), at `range_lr`, not decayed.

    range_lr: None for `lr`, which suits PACT and LSQ under SGD and AdamW alike: LSQ scales its gradient itself, and
      PACT's L2 term is in the loss, where AdamW's decoupled decay would not stand for it.
    ValueError: a negative number, which torch would not refuse in a group.
    """
    numbers = {"lr": lr, "weight_decay": weight_decay, "range_lr": 0.0 if range_lr is None else range_lr}
    for argument, value in numbers.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{argument} is {value!r}; expected a finite number of 0 or more")
    ranges = {id(p) for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    range_lr = lr if range_lr is None else range_lr
    groups = [
        {"params": [p for p in parameters if id(p) not in ranges], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in ranges], "lr": range_lr, "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(ABC):
    """The options of one optimizer; learning rates and weight decay stand in the groups."""

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over `parameter_groups`."""


@dataclass(frozen=True, kw_only=True)
class SGD(OptimizerSettings):
    """torch's SGD."""

    momentum: float = 0.9
    """share of the last step that the next one keeps, 0 or more, below 1"""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum!r}; expected 0 or more, below 1")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        return optim.SGD(groups, momentum=self.momentum, fused=_on_gpu(groups))


@dataclass(frozen=True, kw_only=True)
class AdamW(OptimizerSettings):
    """torch's AdamW."""

    beta1: float = 0.9
    """decay of the mean of gradients"""
    beta2: float = 0.999
    """decay of the mean of their squares"""

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}; expected 0 or more, below 1")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        return optim.AdamW(groups, betas=(self.beta1, self.beta2), fused=_on_gpu(groups))


def _on_gpu(groups: list[dict[str, Any]]) -> bool:
    return groups[0]["params"][0].device.type == "cuda"


optimizers: dict[str, type[OptimizerSettings]] = {"sgd": SGD, "adamw": AdamW}
"""The settings of each optimizer, by the name that recipes give it."""


def cosine_schedule(optimizer: Optimizer, steps: int) -> LRScheduler:
    """From lr to 0."""
    return CosineAnnealingLR(optimizer, steps)


def one_cycle_schedule(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Up to lr over the first fifth, cosine to 0 (Smith 2018, momentum constant); fewer than 5 steps are the first of
    5."""
    peaks = [g["lr"] for g in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=max(6, steps + 1), pct_start=0.2, cycle_momentum=False)


def step_schedule(optimizer: Optimizer, steps: int) -> LRScheduler:
    """x 0.1 at 3/10 and 6/10, the paper's 60 and 120 of 200 epochs."""
    return MultiStepLR(optimizer, [steps * 3 // 10, steps * 6 // 10])


schedules: dict[str, Schedule] = {"cosine": cosine_schedule, "one-cycle": one_cycle_schedule, "step": step_schedule}
"""By the name that recipes give them."""


def make_optimizer(name: str, groups: list[dict[str, Any]], **options: float) -> Optimizer:
    """The optimizer called `name`, "sgd" or "adamw", over `parameter_groups`; options: those of its settings."""
    return named_or_imported("optimizer", name, optimizers)(**options).build(groups)


def make_schedule(name: str, optimizer: Optimizer, steps: int) -> LRScheduler:
    """The schedule called `name`: "cosine", "one-cycle", "step", or package.module:function or file.py:function of
    (optimizer, steps); stepped once per training step, over `steps` in all. ValueError: no such name."""
    return named_or_imported("schedule", name, schedules)(optimizer, steps)
