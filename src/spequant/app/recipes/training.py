"""How long, how fast and where a recipe trains."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from spequant.names import chosen
from spequant.train import SGD, OptimizerSettings
from spequant.train.optimizers import schedules


@dataclass(frozen=True, kw_only=True)
class Training:
    """Schedule and machine."""

    epochs: int = 6
    batch_size: int = 128
    """images per optimizer step, over all processes"""
    accumulate: int = 1
    """parts that a process splits its share of a batch into, one after another, to save memory"""
    optimizer: OptimizerSettings = field(default_factory=SGD)
    lr: float = 0.04
    """at its peak"""
    weight_decay: float = 1e-4
    range_lr: float | None = None
    """of clips and steps; None: as lr"""
    schedule: str = "one-cycle"
    """cosine, one-cycle, step, or a function of your own: package.module:function or file.py:function"""
    label_smoothing: float = 0.0
    """share of a training label spread evenly over all classes, e.g. .1; below 1"""
    clip_norm: float | None = None
    """largest norm of the gradient; None: any"""
    ema: float | None = None
    """decay of a moving average of the weights, less at the start, which is then the result, with batch norm of its
    own; None: none"""
    precision: Literal["fp32", "bf16"] = "bf16"
    """autocast of the training steps; quantization and evaluation stay fp32"""
    freeze_threshold: float | None = None
    """freeze weights of 4 bits or fewer that oscillate more often than this (share of steps); None: none"""
    freeze_threshold_end: float | None = None
    """where a half cosine takes that threshold by the end of training; None: it stays"""
    compile: bool = True
    sync_batch_norm: bool = True
    """with several processes, batch statistics over all of them"""
    deterministic: bool = False
    """on a GPU: only deterministic kernels, slower; a CPU is deterministic as it is"""
    measure_every: int = 1
    """epochs from one measurement on the held-out images to the next"""
    checkpoint_every: int | None = None
    """steps from one checkpoint to the next within an epoch; None: only at the end of each epoch"""
    layers_every: int | None = None
    """epochs from one look at the layers to the next, for `spequant layers RUN`: clipping, levels in use, codes that
    change. Two forward passes each; the first before training, the last after it. None: none"""
    tracker: str | None = None
    """tensorboard, wandb ... or any other that accelerate knows; metrics.jsonl is written in any case"""
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    """of torch on the CPU; None: as torch finds them"""

    def __post_init__(self) -> None:
        for name, holds, expected in self._rules():
            if not holds:
                raise ValueError(f"train.{name} is {getattr(self, name)!r}; expected {expected}")
        chosen("train.schedule", self.schedule, schedules)

    def _rules(self) -> list[tuple[str, bool, str]]:
        """(field, whether its value is right, what is expected)."""
        share = "a share of steps between 0 and 1, e.g. 0.01, or None"
        positive = (
            ("epochs", "1 or more"),
            ("batch_size", "1 or more images"),
            ("accumulate", "1 or more parts"),
            ("measure_every", "1 or more epochs"),
            ("checkpoint_every", "1 or more steps, or None"),
            ("layers_every", "1 or more epochs, or None"),
            ("threads", "1 or more, or None"),
        )
        thresholds = ("freeze_threshold", "freeze_threshold_end")
        return [
            *((name, _none_or(getattr(self, name), lambda v: v >= 1), expected) for name, expected in positive),
            (
                "accumulate",
                self.batch_size % self.accumulate == 0 if self.accumulate >= 1 else False,
                f"a number that divides train.batch_size, {self.batch_size}",
            ),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more, below 1"),
            ("lr", 0 < self.lr < math.inf, "a number above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("range_lr", _none_or(self.range_lr, lambda v: v >= 0), "0 or more, or None"),
            ("clip_norm", _none_or(self.clip_norm, lambda v: v > 0), "above 0, or None"),
            ("ema", _none_or(self.ema, lambda v: 0 < v < 1), "a decay between 0 and 1, e.g. .9999, or None"),
            ("seed", self.seed >= 0, "0 or more"),
            *((name, _none_or(getattr(self, name), lambda v: 0 < v < 1), share) for name in thresholds),
            (
                "freeze_threshold_end",
                self.freeze_threshold_end is None or self.freeze_threshold is not None,
                "None: nothing is frozen without train.freeze_threshold",
            ),
        ]


def _none_or(value: Any, holds: Any) -> bool:
    return value is None or bool(holds(value))


def check_device(name: str, argument: str) -> None:
    """ValueError unless `name` is "auto" or a device that torch has here."""
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"{argument} is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{argument} is {name!r}, but torch finds no GPU here; expected auto or cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{argument} is {name!r}, which torch cannot use here; expected auto, cpu or cuda") from error


def device_named(name: str) -> torch.device:
    """`name`, or for "auto" the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
