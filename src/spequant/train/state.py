"""Everything that training changes, as one object, which a checkpoint saves and restores. No files here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spequant.methods import Method
from spequant.methods.base import trained_by
from spequant.networks import versioned
from spequant.policies import check_seed
from spequant.processes import sum_over_processes, world
from spequant.train.schedule_state import changed, overlaid, plain_state


@dataclass(frozen=True)
class Snapshot:
    """A copy of a `TrainingState`.

    Attributes:
        tensors: Tensors by the names "model.NAME", "optimizer.PARAMETER.KEY", "ema.NAME", "freezer.NAME" and
            "method.NAME".
        numbers: Everything else, which JSON can hold.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `name` and a dot, by the rest of their names."""
        return {k.removeprefix(name + "."): v for k, v in self.tensors.items() if k.startswith(name + ".")}


class Freezer(Protocol):
    """An object that freezes weights; `step` is called after each optimizer step with its number, from 1."""

    def step(self, number: int) -> None: ...
    def frozen_share(self) -> float: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class Progress:
    """Where training stands in the present epoch.

    Attributes:
        epochs: Number of epochs in all.
        steps: Steps per epoch.
        epoch: Number of the epoch, from 0.
        step: Steps done in this epoch.
        lr: Learning rate of the first group in the last step.
        images: Samples read in this epoch.
        seconds: Time since the start of this epoch.
        sums: (4,), on the device until somebody reads them: total, task and distillation loss, each summed over steps,
            and the number of right answers (nan if the task counts none).
        processes: How many processes `sums` and `images` cover.
    """

    epochs: int = 0
    steps: int = 0
    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    images: int = 0
    seconds: float = 0.0
    sums: Tensor = field(default_factory=lambda: torch.zeros(4))
    processes: int = 1

    @property
    def done(self) -> float:
        """Share of all training that is done, 0 to 1."""
        return (self.epoch + self.step / self.steps) / self.epochs

    def add(self, sums: Tensor, images: int, seconds: float) -> None:
        """Count one step.

        Args:
            sums: What `train_step` returned.
            images: Samples in the batch.
            seconds: Time since the start of the epoch.
        """
        self.sums += sums
        self.step, self.images, self.seconds = self.step + 1, self.images + images, seconds

    def over_processes(self) -> "Progress":
        """Return the progress of all processes together; every process has to call it."""
        total = sum_over_processes(self.sums.clone())
        return replace(self, sums=total, images=self.images * world(), processes=world())

    def row(self) -> dict[str, Any]:
        """Return the means so far, read from the device, as a row of metrics.jsonl; the epoch counts from 1."""
        total, task, distill, hits = self.sums.tolist()
        steps = self.step * self.processes
        accuracy = {} if math.isnan(hits) else {"train_accuracy": 100 * hits / max(1, self.images)}
        return {
            "epoch": self.epoch + 1,
            "loss": total / steps,
            "task": task / steps,
            "distill": distill / steps,
            **accuracy,
            "lr": self.lr,
            "images_per_second": self.images / max(1e-9, self.seconds),
            "seconds": self.seconds,
        }


class TrainingState:
    """Everything that training changes.

    Args:
        model: The plain network, whose weights are the result.
        method: The method. The optimizer also has to hold the parameters of its networks that learn, if it has any.
        optimizer: The optimizer.
        schedule: The schedule of its learning rates.
        wrapped: What a step calls: `model` itself, compiled, or in DistributedDataParallel; None: `model`.
        ema: Decay of an exponential moving average of the weights, between 0 and 1. After n steps it is at most
            (1 + n) / (10 + n), so that the first weights of a short run are forgotten (as in timm's ModelEmaV3). None:
            no average.
        freezer: Freezes weights after each step; None: nothing is frozen.
        seed: Random numbers of dropout follow from (seed, step, rank); 0 or more.

    Attributes:
        step: Number of optimizer steps done.
        partner: The networks of the method that learn, or None.
        progress: Where training stands in the present epoch.

    Raises:
        ValueError: `ema` or `seed` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: Optimizer,
        schedule: LRScheduler,
        *,
        wrapped: nn.Module | None = None,
        ema: float | None = None,
        freezer: Freezer | None = None,
        seed: int = 0,
    ):
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema is {ema!r}; expected a decay between 0 and 1, e.g. 0.999, or None")
        check_seed(seed)
        self.model, self.method, self.optimizer, self.schedule = model, method, optimizer, schedule
        self.partner = trained_by(method)
        self.wrapped = model if wrapped is None else wrapped
        self.freezer, self.seed, self.step = freezer, seed, 0
        self._first_schedule = plain_state(schedule.state_dict())

        def average(averaged: Any, current: Any, count: Any) -> None:
            assert ema is not None
            get_ema_multi_avg_fn(min(ema, (1 + self.step) / (10 + self.step)))(averaged, current, count)

        self.ema = None if ema is None else AveragedModel(model, multi_avg_fn=average)
        self.progress = Progress(sums=torch.zeros(4, device=self.device))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def result(self) -> nn.Module:
        """The network that training results in: the averaged one where weights are averaged."""
        return self.model if self.ema is None else self.ema.module

    def capture(self) -> Snapshot:
        """Return a copy of everything, on its device; every process has to call it, and all get the same.

        Raises:
            TypeError: The optimizer or the method has a state that is no tensor.
        """
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.partner is not None:
            tensors |= {f"method.{k}": v for k, v in self.partner.state_dict().items()}
        names = {id(p): n for n, p in self._parameters().items()}
        for parameter, values in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(parameter)]}.{k}": v for k, v in values.items() if v is not None}
        numbers: dict[str, Any] = {
            "step": self.step,
            "groups": [_numbers(g) for g in self.optimizer.param_groups],
            "schedule": changed(plain_state(self.schedule.state_dict()), self._first_schedule),
            "method": _state_of(self.method),
            "progress": self._progress(),
        }
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.module.state_dict().items()}
            numbers["averaged"] = int(self.ema.n_averaged)
        if self.freezer is not None:
            tensors |= {f"freezer.{k}": v for k, v in self.freezer.state_dict().items()}
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} is a {type(value).__name__}; expected only tensors: nothing else is saved without pickle"
                )
        return Snapshot({k: v.detach().clone() for k, v in tensors.items()}, numbers)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to `snapshot`.

        Args:
            snapshot: What `capture` returned, for the same network, method and optimizer.

        Raises:
            ValueError: A tensor is missing, too much or of another shape; the message names the first one.
        """
        expected = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.ema is not None:
            expected |= {f"ema.{k}": v for k, v in self.ema.module.state_dict().items()}
        if self.partner is not None:
            expected |= {f"method.{k}": v for k, v in self.partner.state_dict().items()}
        _check_same_tensors(
            {k: v for k, v in snapshot.tensors.items() if k.startswith(("model.", "ema.", "method."))}, expected
        )
        optimizer = self._optimizer_state(snapshot)
        self.model.load_state_dict(versioned(self.model, snapshot.part("model")))
        if self.partner is not None:
            self.partner.load_state_dict(versioned(self.partner, snapshot.part("method")))
        self.optimizer.load_state_dict(optimizer)
        numbers = snapshot.numbers
        schedule = overlaid(self._first_schedule, numbers["schedule"])
        self.schedule.load_state_dict(overlaid(self.schedule.state_dict(), schedule))
        if hasattr(self.method, "load_state_dict"):
            self.method.load_state_dict(numbers["method"])  # type: ignore[attr-defined]
        if self.ema is not None:
            self.ema.module.load_state_dict(versioned(self.ema.module, snapshot.part("ema")))
            self.ema.n_averaged.fill_(numbers["averaged"])
        if self.freezer is not None:
            self.freezer.load_state_dict({k: v.to(self.device) for k, v in snapshot.part("freezer").items()})
        self.step = numbers["step"]
        progress = dict(numbers["progress"])
        sums = torch.tensor(progress.pop("sums"), device=self.device) / world()
        self.progress = Progress(**progress, sums=sums)
        self.progress.images //= world()

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the model by name, and those of the partner by "method." and their name."""
        partner = {} if self.partner is None else dict(self.partner.named_parameters())
        return {**dict(self.model.named_parameters()), **{f"method.{n}": p for n, p in partner.items()}}

    def _progress(self) -> dict[str, Any]:
        progress = self.progress.over_processes()
        values = {k: getattr(progress, k) for k in ("epochs", "steps", "epoch", "step", "lr", "images", "seconds")}
        return {**values, "sums": progress.sums.tolist()}

    @torch.no_grad()
    def _optimizer_state(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return what torch's `load_state_dict` expects: states by number, and groups with the saved numbers."""
        current = self.optimizer.state_dict()
        in_order = [p for g in self.optimizer.param_groups for p in g["params"]]
        number = {id(p): i for i, p in enumerate(in_order)}
        parameters = self._parameters()
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in snapshot.part("optimizer").items():
            owner, _, key = name.rpartition(".")
            if owner not in parameters or id(parameters[owner]) not in number:
                raise ValueError(f"optimizer.{name} was found; expected no such parameter in this network")
            shape = parameters[owner].shape
            if value.dim() and value.shape != shape:
                raise ValueError(f"optimizer.{name} has shape {tuple(value.shape)}; expected {tuple(shape)}")
            like = torch.empty_like(parameters[owner]) if value.shape == shape else torch.empty_like(value)
            state.setdefault(number[id(parameters[owner])], {})[key] = like.copy_(value)  # with the parameter's strides
        groups = snapshot.numbers["groups"]
        if len(groups) != len(current["param_groups"]):
            raise ValueError(f"the optimizer has {len(groups)} groups; expected {len(current['param_groups'])}")
        groups = [{**group, **saved} for group, saved in zip(current["param_groups"], groups, strict=True)]
        return {"state": state, "param_groups": groups}


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    """Return the settings of a group that a schedule may have changed (learning rate, momentum ...), and no flags."""
    return {k: v for k, v in group.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _state_of(method: Method) -> dict[str, Any]:
    return method.state_dict() if hasattr(method, "state_dict") else {}  # type: ignore[attr-defined]


def _check_same_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse `tensors` whose names, shapes or types differ from those of `expected`."""
    for name in [*expected, *tensors]:
        if name not in tensors:
            raise ValueError(f"{name} is missing; expected {_described(expected[name])}: the state of another network?")
        if name not in expected:
            raise ValueError(
                f"{name} ({_described(tensors[name])}) was found; expected no such tensor: another network?"
            )
        if tensors[name].shape != expected[name].shape or tensors[name].dtype != expected[name].dtype:
            raise ValueError(f"{name} is {_described(tensors[name])}; expected {_described(expected[name])}")


def _described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
