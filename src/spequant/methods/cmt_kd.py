"""CMT-KD: collaborative multi-teacher distillation (Pham et al. 2023, arXiv 2210.16103).

    F_k = sum_i softmax(pi_k)_i Q_i(A_k,i), what stage k of the teachers makes, fused: all their next stages read it
    L = a (H(y, p_S) + H(y, p_T)) + b (KL(p_T || p_S) + KL(p_S || p_T)) + g L_feat,   (a, b, g) = (1, .5, 100)
    L_feat = mean over k of MSE(map(F_k), map(A_k,S)),   map: mean of squares over channels, to length 1

| symbol | here |
|---|---|
| A_k,i: output of stage k of teacher i, the same network at more bits; Q_i at its bits | `Fused` |
| pi_k, learned | `Fused.importance` |
| z_T, z_S; A_k,S the student's | `teacher`, `student`; `Recorder` |

All teachers read F_k, so that together they are one network, each stage of which is a `Fused`. Known from a
re-implementation; ours: batch norm between stages is common, logits are fused without Q, L_feat's map and its mean.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.methods.base import (
    Losses,
    MethodSettings,
    Start,
    check_temperature,
    check_weight,
    penalties,
)
from spequant.methods.losses import kl
from spequant.methods.parts import Recorder, given_stages, place, rounded
from spequant.methods.tasks import Classification, Task
from spequant.quantizers.base import check_bits


class Fused(nn.Module):
    """One stage of several teachers; its output is the mean of theirs, each on its `bits` first, weighted by
    softmax(importance). bits: None leaves it float."""

    def __init__(self, stages: Sequence[nn.Module], bits: Sequence[int | None]):
        super().__init__()
        self.stages, self.bits = nn.ModuleList(stages), tuple(bits)
        self.importance = nn.Parameter(torch.zeros(len(stages)))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [stage(x) for stage in self.stages]
        quantized = [y if b is None else rounded(y, b) for y, b in zip(outputs, self.bits, strict=True)]
        return sum(w * y for w, y in zip(F.softmax(self.importance, 0), quantized, strict=True))  # type: ignore[return-value]


class CMTKD:
    """network: the float network, whose stages are named. teachers: {bits: that network prepared at these bits and
    calibrated}, copied; they learn. stages: modules that follow one another; None: found (`parts.stages_of`)."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """CMT-KD: several teachers at more bits, fused stage by stage."""

        widths: tuple[int, ...] = (4, 8)
        """the teachers' bits, 2 to 8"""
        temperature: float = 1.0
        """T"""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)
            check_teachers(self.widths)

        def build(self, start: Start) -> "CMTKD":
            teachers = {bits: start.quantized(bits) for bits in self.widths}
            return CMTKD(start.network, teachers, temperature=self.temperature, task=start.task)

    def __init__(
        self,
        network: nn.Module,
        teachers: dict[int, nn.Module],
        *,
        stages: Sequence[str] | None = None,
        weights: tuple[float, float, float] = (1.0, 0.5, 100.0),
        temperature: float = 1.0,
        task: Task | None = None,
    ):
        check_temperature(temperature)
        for value in weights:
            check_weight(value, "weights")
        check_teachers(tuple(teachers))
        self.stages = given_stages(network, stages)
        self.a, self.b, self.g = weights
        self.temperature, self.task = float(temperature), task or Classification()
        self.trained = self._together({bits: copy.deepcopy(teacher) for bits, teacher in teachers.items()})
        self.theirs, self.own = Recorder(self.stages[:-1]), Recorder(self.stages[:-1])

    def _together(self, teachers: dict[int, nn.Module]) -> nn.Module:
        whole = copy.deepcopy(next(iter(teachers.values())))
        for name in self.stages:
            widths = [None if name == self.stages[-1] else bits for bits in teachers]
            place(whole, name, Fused([teacher.get_submodule(name) for teacher in teachers.values()], widths))
        return whole.train()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        with self.theirs.on(self.trained) as fused:
            teacher = self.task.logits(self.trained, batch)
        with self.own.on(model) as found:
            student = self.task.logits(model, batch)
        task, t = self.task.loss(student, batch), self.temperature
        distill = kl(student, teacher.detach(), t)
        features = torch.stack([F.mse_loss(_map(found[k]), _map(fused[k])) for k in self.stages[:-1]]).mean()
        total = self.a * (task + self.task.loss(teacher, batch))
        total = total + self.b * (distill + kl(teacher, student.detach(), t)) + self.g * features
        return Losses(total + penalties(model) + penalties(self.trained), task, distill, student.detach())


def _map(x: Tensor) -> Tensor:
    """Mean of squares over channels (axis 1; of (batch, features) nothing is averaged), a sample's length 1."""
    squares = x.float().square()
    squares = squares.mean(1) if x.dim() > 2 else squares
    return F.normalize(squares.flatten(1), dim=1)


def check_teachers(widths: Sequence[int]) -> None:
    if not widths:
        raise ValueError("teachers is empty; expected {bits: prepared network}, e.g. of 4, 6 and 8 bits")
    for bits in widths:
        check_bits(bits, "teachers' bits", both_signs=True)
