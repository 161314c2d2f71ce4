"""How long, how fast and where a recipe trains."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from spequant.names import named_or_imported
from spequant.processes import world
from spequant.train import SGD, OptimizerSettings, keep_freed_memory, make_accelerator, make_deterministic
from spequant.train.optimizers import schedules

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, how fast and where a network trains."""

    epochs: int = 6
    """passes over the training samples"""
    batch_size: int = 128
    """samples per optimizer step, over all processes"""
    accumulate: int = 1
    """parts into which a process splits its share of a batch, one after the other, to save memory"""
    optimizer: OptimizerSettings = field(default_factory=SGD)
    """optimizer"""
    lr: float = 0.04
    """learning rate at its peak"""
    weight_decay: float = 1e-4
    """weight decay; the ranges of quantizers have none"""
    range_lr: float | None = None
    """learning rate of the ranges of quantizers (clips and steps); None: lr"""
    schedule: str = "one-cycle"
    """schedule of the learning rate: cosine, one-cycle, step, or your own function, package.module:function or
    file.py:function"""
    label_smoothing: float = 0.0
    """share of a training label that is spread evenly over all classes, 0 up to below 1, e.g. .1"""
    clip_norm: float | None = None
    """norm to which a larger gradient is scaled down; None: it is not"""
    ema: float | None = None
    """decay of a moving average of the weights, between 0 and 1, smaller at the start; the average is then the result,
    with its own statistics of batch norm; None: no average"""
    precision: Literal["fp32", "bf16"] = "bf16"
    """arithmetic of training steps; that of quantizers and evaluation is always fp32"""
    freeze_threshold: float | None = None
    """share of steps, 0 to 1: weights of 4 bits or fewer that oscillate more often are frozen; None: none is"""
    freeze_threshold_end: float | None = None
    """that threshold at the end of training, reached along a half cosine; None: it stays the same"""
    compile: bool | Literal["auto"] = True
    """whether steps are compiled by torch.compile; auto: where that saves more time than it takes, which the first
    steps, uncompiled, decide"""
    sync_batch_norm: bool = True
    """whether batch norm's statistics are over the batches of all processes"""
    deterministic: bool = False
    """whether a GPU uses only deterministic kernels, which are slower; a CPU always is deterministic"""
    measure_every: int = 1
    """epochs from one measurement on the held-out samples to the next"""
    checkpoint_every: int | None = None
    """steps from one checkpoint to the next within an epoch; None: there is one at the end of each epoch"""
    layers_every: int | None = None
    """epochs from one measurement of the layers to the next (clipping, levels in use, codes that change; two forward
    passes), which `spequant layers RUN` shows; the first is before training, the last after it; None: none"""
    tracker: str | None = None
    """where the metrics of metrics.jsonl go, too: tensorboard, wandb or another that accelerate knows; None: nowhere"""
    seed: int = 0
    """seed of everything that is drawn: order, augmentation, precision, new weights"""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N"""
    threads: int | None = None
    """threads of torch on the CPU; None: as many as torch chooses"""

    def __post_init__(self) -> None:
        for name, holds, expected in self._rules():
            if not holds:
                raise ValueError(f"train.{name} is {getattr(self, name)!r}; expected {expected}")
        named_or_imported("train.schedule", self.schedule, schedules)

    def start(self, folder: Path) -> "Accelerator":
        """Join the other processes, if a launcher started some; set threads, kernels and memory.

        Args:
            folder: Where a tracker writes.

        Raises:
            ValueError: A batch does not split evenly over the processes; the same in every process.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.deterministic:
            make_deterministic()
        keep_freed_memory()
        accelerator = make_accelerator(
            self.precision, device=self.device, accumulate=self.accumulate, tracker=self.tracker, folder=folder
        )
        self.check_split(world())
        return accelerator

    def device_of(self, accelerator: "Accelerator") -> torch.device:
        """Return the device that `device` names, in this process."""
        return accelerator.device if self.device == "auto" else torch.device(self.device)

    def check_split(self, processes: int) -> None:
        """Refuse a batch that does not split evenly over `processes` and `accumulate` parts.

        Raises:
            ValueError: It does not; the text names the next size that does.
        """
        together = processes * self.accumulate
        if self.batch_size % together:
            raise ValueError(
                f"train.batch_size is {self.batch_size} and train.accumulate {self.accumulate}, on {processes} "
                f"process(es); expected a batch that splits evenly into {processes} x {self.accumulate} parts: give "
                f"--train.batch-size {-(-self.batch_size // together) * together}, or another --train.accumulate or "
                "number of processes"
            )

    def _rules(self) -> list[tuple[str, bool, str]]:
        """Return for each rule the field, whether its value obeys, and what is expected."""
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
            ("compile", self.compile in (True, False, "auto"), "True, False or 'auto'"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more, below 1"),
            ("lr", 0 < self.lr < math.inf, "a finite number above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number of 0 or more"),
            ("range_lr", _none_or(self.range_lr, lambda v: 0 <= v < math.inf), "a finite number of 0 or more, or None"),
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
    """Raise ValueError unless `name` is "auto" or a device that torch can use here; `argument` is its name."""
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
    """Return the device `name`; "auto" is the GPU if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
