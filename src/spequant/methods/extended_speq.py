"""SPEQ with what may be added to it: ours, each off by itself, none of it in the paper.

    L = CE(y, z_S) + lambda T^2 mean(1 - cos(p_T, p_S)) + lambda_F mean(1 - cos(f_T, f_S)),   p = softmax(z / T)

| symbol | here |
|---|---|
| T, u, at each call on a line from `speq`'s own to `temperature_end`, `probability_end` over `steps` calls | `speq` |
| z_T, f_T: the teacher's logits and penultimate feature, of the network's own weights, or of | `average` |
| their moving average a_t = d a_{t-1} + (1 - d) w_t (Polyak's; as a teacher: Tarvainen and Valpola 2017, \
arXiv 1703.01780), at stochastic precision like SPEQ's | `decay` |
| f_S, f_T: the head's input, before its quantizer; f_T gives no gradient, of several passes the last one's | `head` |
| lambda_F | `feature_weight` |
"""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.layers import weight_quantizers
from spequant.methods.base import (
    Losses,
    MethodSettings,
    Start,
    check_steps,
    check_temperature,
    check_weight,
    penalties,
)
from spequant.methods.parts import Recorder, tokens
from spequant.methods.speq import SPEQ
from spequant.networks import head_of
from spequant.policies import Stochastic


class ExtendedSPEQ:
    """speq: with T and u as training begins. steps: calls in all. average: a copy of the prepared, calibrated model,
    which this method changes, `decay` of it kept at each call; None: the network's own weights teach. head: name of the
    layer whose input is the feature, which `feature_weight` needs. `Losses.distill` is the term of the logits.

    teacher: what is called for `average`, e.g. it compiled.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """SPEQ with additions: falling T and u, averaged weights that teach, a loss of features."""

        speq: SPEQ.Settings = field(default_factory=SPEQ.Settings)
        probability_end: float | None = None
        """u at the end of training, a line from speq.probability; None: it stays"""
        temperature_end: float | None = None
        """T at the end, a line from speq.temperature; None: it stays"""
        average: float | None = None
        """decay per step of a moving average of the weights, which teaches in their place, e.g. .999; None: none"""
        feature_weight: float = 0.0
        """of the cosine loss between the penultimate features of teacher and student"""

        def __post_init__(self) -> None:
            decay = {} if self.average is None else {"decay": self.average, "average": nn.Identity()}
            head = "head" if self.feature_weight else None
            ExtendedSPEQ(self.speq.made(), steps=1, head=head, **self._added(), **decay)  # it checks its arguments

        def _added(self) -> dict[str, Any]:
            names = ("probability_end", "temperature_end", "feature_weight")
            return {name: getattr(self, name) for name in names}

        def build(self, start: Start) -> "ExtendedSPEQ":
            added: dict[str, Any] = self._added()
            if self.feature_weight:
                added["head"] = head_of(start.network)
            if self.average is not None:
                average = copy.deepcopy(start.student)
                for quantizer in weight_quantizers(average).values():  # a resumed run's weights may be frozen by now
                    quantizer.frozen = quantizer.frozen_codes = None
                added |= {"average": average, "decay": self.average ** (1 / start.accumulate)}
            return ExtendedSPEQ(self.speq.build(start), steps=start.steps, **added)

        def check_student(self, act_bits: int | None, *, mixed: bool) -> None:
            self.speq.check_student(act_bits, mixed=mixed)

    def __init__(
        self,
        speq: SPEQ,
        *,
        steps: int,
        probability_end: float | None = None,
        temperature_end: float | None = None,
        average: nn.Module | None = None,
        decay: float = 0.999,
        head: str | None = None,
        feature_weight: float = 0.0,
    ):
        check_steps(steps)
        check_weight(feature_weight, "feature_weight")
        if temperature_end is not None:
            check_temperature(temperature_end, "temperature_end")
        if probability_end is not None:
            if not isinstance(speq.policy, Stochastic):
                raise ValueError(
                    f"probability_end is {probability_end!r}; expected None: SPEQ draws by {speq.policy!r}"
                )
            if not 0 <= probability_end <= 1:
                raise ValueError(f"probability_end is {probability_end!r}; expected a number from 0 to 1, or None")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay!r}; expected a number of 0 or more, below 1, e.g. 0.999")
        if average is not None and speq.batch_norm == "eval":
            raise ValueError(
                "batch_norm is 'eval' with average, whose running statistics stand still; expected 'leave'"
            )
        if feature_weight and head is None:
            raise ValueError(f"feature_weight is {feature_weight!r} and head is None; expected the name of a layer")
        self.speq, self.steps, self.decay = speq, steps, decay
        self.temperatures = speq.temperature, speq.temperature if temperature_end is None else float(temperature_end)
        own = speq.policy.probability if isinstance(speq.policy, Stochastic) else 0.0
        self.probabilities = own, own if probability_end is None else float(probability_end)
        self.trained = None if average is None else average.train().requires_grad_(False)
        self.teacher = self.trained
        self.feature_weight, self.head = float(feature_weight), head if feature_weight else None
        names = [] if self.head is None else [self.head]
        self.student_feature, self.teacher_feature = (Recorder(names, inputs=True) for _ in range(2))

    def state_dict(self) -> dict[str, int]:
        return self.speq.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.speq.load_state_dict(state)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        speq = self.speq
        self._fall(min(1.0, speq.step / self.steps))
        if self.trained is not None:
            self._follow(model)
        own = self.teacher is None
        # One recorder where one network does both passes: hooks of two would make a compiled one's graph twice.
        with (
            self.student_feature.on(model) as found,
            nullcontext(found) if own else self.teacher_feature.on(self.teacher) as theirs,  # type: ignore[arg-type]
        ):
            teacher = speq.teach(model if self.teacher is None else self.teacher, batch)
            target = {name: x.detach() for name, x in theirs.items()}
            found.clear()  # and with it the teacher's graph
            student = speq.task.logits(model, batch)
            feature = dict(found)
        task = speq.task.loss(student, batch)
        distill = speq.loss(student, teacher, speq.temperature)
        total = task + speq.weight * distill + penalties(model)
        if self.head is not None:
            total = total + self.feature_weight * _apart(feature[self.head], target[self.head], batch)
        return Losses(total, task, distill, student.detach())

    def _fall(self, done: float) -> None:
        """T and u after that share of training."""
        first, last = self.temperatures
        self.speq.temperature = first + (last - first) * done
        if isinstance(self.speq.policy, Stochastic):
            first, last = self.probabilities
            self.speq.policy = replace(self.speq.policy, probability=first + (last - first) * done)

    @torch.no_grad()
    def _follow(self, model: nn.Module) -> None:
        assert self.trained is not None
        pairs = list(self.trained.parameters()), list(model.parameters())
        torch._foreach_lerp_(*pairs, 1 - self.decay)  # type: ignore[attr-defined]


def _apart(student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
    """Mean over samples of 1 - cos between features; padding is left out."""
    mask = tokens(teacher, batch)
    own, theirs = (x.float() if mask is None else x.float() * mask for x in (student, teacher))
    return (1 - F.cosine_similarity(own.flatten(1), theirs.flatten(1), dim=1)).mean()
