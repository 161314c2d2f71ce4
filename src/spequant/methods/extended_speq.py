"""SPEQ with additions of ours, which are not in the paper; each is off by default.

    L = CE(y, z_S) + lambda T^2 mean(1 - cos(p_T, p_S)) + lambda_F mean(1 - cos(f_T, f_S)),   p = softmax(z / T)

| symbol | here |
|---|---|
| T, u: on a straight line over `steps` calls from the values of `speq` | `temperature_end`, `probability_end` |
| z_T: logits of the teacher at stochastic precision | `speq.teach` |
| the teacher's weights: the network's, or their moving average a_t = d a_{t-1} + (1 - d) w_t | `average` |
| d | `decay` |
| f_S, f_T: penultimate features, the input of the head before its quantizer | `head` |
| lambda_F | `feature_weight` |

f_T gives no gradient; of several teacher passes, it is from the last. The moving average is Polyak's; Tarvainen and
Valpola (2017, arXiv 1703.01780) use it as a teacher.
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
from spequant.methods.tasks import Detection, check_task, distilled
from spequant.networks import head_of
from spequant.policies import Stochastic


class ExtendedSPEQ:
    """SPEQ with T and u that change during training, averaged weights as the teacher, and a loss of features.

    `Losses.distill` is the term of the logits.

    Args:
        speq: SPEQ with T and u of the start of training.
        steps: Calls of the method in the whole training, 1 or more.
        probability_end: u at the end of training, 0 to 1; None: constant.
        temperature_end: T at the end of training, above 0; None: constant.
        average: A copy of the prepared, calibrated model, which becomes the teacher; this method updates it in place.
            None: the model is its own teacher.
        decay: Share of `average` that stays at each call, 0 or more and below 1.
        head: Name of the layer whose input is the feature; needed for `feature_weight`.
        feature_weight: lambda_F, 0 or more.

    Attributes:
        teacher: The module that is called in place of `average`; set it to, e.g., the compiled module.

    Raises:
        ValueError: A number is out of range, an argument needs another one, or `average` is used with batch norm in
            eval mode.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """SPEQ with additions: T and u that change, averaged weights as the teacher, a loss of features."""

        speq: SPEQ.Settings = field(default_factory=SPEQ.Settings)
        """SPEQ itself"""
        probability_end: float | None = None
        """u at the end of training, reached on a straight line from speq.probability; None: constant"""
        temperature_end: float | None = None
        """T at the end of training, reached on a straight line from speq.temperature; None: constant"""
        average: float | None = None
        """decay per step of a moving average of the weights, which is then the teacher, e.g. .999; None: no average"""
        feature_weight: float = 0.0
        """weight of the cosine loss between the penultimate features of teacher and student"""

        def __post_init__(self) -> None:
            decay = {} if self.average is None else {"decay": self.average, "average": nn.Identity()}
            head = "head" if self.feature_weight else None
            # The constructor checks the values.
            ExtendedSPEQ(self.speq.make(), steps=1, head=head, **self._options(), **decay)

        def _options(self) -> dict[str, Any]:
            names = ("probability_end", "temperature_end", "feature_weight")
            return {name: getattr(self, name) for name in names}

        def build(self, start: Start) -> "ExtendedSPEQ":
            options: dict[str, Any] = self._options()
            if self.feature_weight:
                options["head"] = head_of(start.network)
            if self.average is not None:
                average = copy.deepcopy(start.student)
                # A resumed run may have frozen weights.
                for quantizer in weight_quantizers(average).values():
                    quantizer.frozen = quantizer.frozen_codes = None
                options |= {"average": average, "decay": self.average ** (1 / start.accumulate)}
            return ExtendedSPEQ(self.speq.build(start), steps=start.steps, **options)

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
                "batch_norm is 'eval' with average, whose running statistics never change; expected 'leave'"
            )
        if feature_weight and head is None:
            raise ValueError(f"feature_weight is {feature_weight!r} and head is None; expected the name of a layer")
        if feature_weight:
            check_task(speq.task, (Detection,), "ExtendedSPEQ with feature_weight", "a detector has no one feature")
        self.speq, self.steps, self.decay = speq, steps, decay
        self.temperatures = speq.temperature, speq.temperature if temperature_end is None else float(temperature_end)
        first = speq.policy.probability if isinstance(speq.policy, Stochastic) else 0.0
        self.probabilities = first, first if probability_end is None else float(probability_end)
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
        self._set_schedule(min(1.0, speq.step / self.steps))
        if self.trained is not None:
            self._update_average(model)
        teaches_itself = self.teacher is None
        # One recorder if one network does both passes: the hooks of two recorders would compile its graph twice.
        with (
            self.student_feature.on(model) as student_inputs,
            nullcontext(student_inputs) if teaches_itself else self.teacher_feature.on(self.teacher) as teacher_inputs,  # type: ignore[arg-type]
        ):
            teacher = speq.teach(model if self.teacher is None else self.teacher, batch)
            target = {name: x.detach() for name, x in teacher_inputs.items()}
            student_inputs.clear()  # frees the teacher's graph
            student = speq.task.logits(model, batch)
            feature = dict(student_inputs)
        task = speq.task.loss(student, batch)
        distill = distilled(speq.task, speq.loss, student, teacher, batch, speq.temperature)
        total = task + speq.weight * distill + penalties(model)
        if self.head is not None:
            total = total + self.feature_weight * _cosine_distance(feature[self.head], target[self.head], batch)
        return Losses(total, task, distill, student.detach())

    def _set_schedule(self, done: float) -> None:
        """Set T and u to their values after the share `done` of training."""
        first, last = self.temperatures
        self.speq.temperature = first + (last - first) * done
        if isinstance(self.speq.policy, Stochastic):
            first, last = self.probabilities
            self.speq.policy = replace(self.speq.policy, probability=first + (last - first) * done)

    @torch.no_grad()
    def _update_average(self, model: nn.Module) -> None:
        assert self.trained is not None
        pairs = list(self.trained.parameters()), list(model.parameters())
        torch._foreach_lerp_(*pairs, 1 - self.decay)  # type: ignore[attr-defined]


def _cosine_distance(student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
    """Return the mean over samples of 1 - cos between features, without padding."""
    mask = tokens(teacher, batch)
    a, b = (x.float() if mask is None else x.float() * mask for x in (student, teacher))
    return (1 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)).mean()
