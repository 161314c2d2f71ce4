"""CMT-KD: collaborative multi-teacher distillation (Pham et al. 2023, arXiv 2210.16103).

    F_k = sum_i softmax(pi_k)_i Q_i(A_k,i), the fused output of stage k, which the next stage of every teacher reads
    L = a (H(y, p_S) + H(y, p_T)) + b (KL(p_T || p_S) + KL(p_S || p_T)) + g L_feat,   (a, b, g) = (1, .5, 100)
    L_feat = mean over k of MSE(map(F_k), map(A_k,S)),   map: mean of squares over channels, scaled to length 1

| symbol | here |
|---|---|
| A_k,i: output of stage k of teacher i, the same network at more bits | `Fused.stages` |
| Q_i: quantizer at the bits of teacher i | `Fused.bits` |
| pi_k, learned | `Fused.importance` |
| z_T, z_S: logits of teachers and student; A_k,S: output of the student's stage k | `teacher`, `student`; `Recorder` |

As all teachers read F_k, they form one network, whose stages are `Fused`. We know the method from a re-implementation.
These points are ours: the teachers share the batch norm between stages, logits are fused without Q, and the map and the
mean in L_feat.
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
from spequant.methods.parts import Recorder, put_module, resolve_stages, rounded
from spequant.methods.tasks import Classification, Detection, Task, check_task, distilled
from spequant.quantizers.base import check_bits


class Fused(nn.Module):
    """One stage of several teachers: the weighted mean of their quantized outputs; the weights are softmax(importance).

    Args:
        stages: This stage of each teacher.
        bits: Bits of each teacher's output; None: it stays float.
    """

    def __init__(self, stages: Sequence[nn.Module], bits: Sequence[int | None]):
        super().__init__()
        self.stages, self.bits = nn.ModuleList(stages), tuple(bits)
        self.importance = nn.Parameter(torch.zeros(len(stages)))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [stage(x) for stage in self.stages]
        quantized = [y if b is None else rounded(y, b) for y, b in zip(outputs, self.bits, strict=True)]
        return sum(w * y for w, y in zip(F.softmax(self.importance, 0), quantized, strict=True))  # type: ignore[return-value]


class CMTKD:
    """CMT-KD: several teachers at more bits, fused stage by stage, which learn together with the student.

    `Losses.distill` is KL(p_T || p_S), with T^2, before b.

    Args:
        network: The float network that has the stages.
        teachers: {bits: `network` prepared at these bits, 2 to 8, and calibrated}; they are copied, and learn.
        stages: Names of two modules or more of `network` that follow one another; None: `parts.stages_of(network)`.
        weights: (a, b, g), each 0 or more.
        temperature: T, above 0.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: No teacher, a number out of range, or `stages` names fewer than two modules or one that is missing.

    References:
        Pham et al. 2023, arXiv 2210.16103.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """CMT-KD: several teachers at more bits, fused stage by stage."""

        widths: tuple[int, ...] = (4, 8)
        """bits of the teachers, 2 to 8 each"""
        temperature: float = 1.0
        """T, the temperature of the softmax"""

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
        self.temperature, self.task = float(temperature), task or Classification()
        check_task(self.task, (Detection,), "CMTKD", "a detector has no stages that follow one another")
        self.stages = resolve_stages(network, stages)
        self.a, self.b, self.g = weights
        self.trained = self._fuse({bits: copy.deepcopy(teacher) for bits, teacher in teachers.items()})
        self.teacher_recorder, self.student_recorder = Recorder(self.stages[:-1]), Recorder(self.stages[:-1])

    def _fuse(self, teachers: dict[int, nn.Module]) -> nn.Module:
        network = copy.deepcopy(next(iter(teachers.values())))
        for name in self.stages:
            widths = [None if name == self.stages[-1] else bits for bits in teachers]
            put_module(network, name, Fused([teacher.get_submodule(name) for teacher in teachers.values()], widths))
        return network.train()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        with self.teacher_recorder.on(self.trained) as teacher_outputs:
            teacher = self.task.logits(self.trained, batch)
        with self.student_recorder.on(model) as student_outputs:
            student = self.task.logits(model, batch)
        task, t = self.task.loss(student, batch), self.temperature
        distill = distilled(self.task, kl, student, teacher.detach(), batch, t)
        pairs = [(_map(student_outputs[k]), _map(teacher_outputs[k])) for k in self.stages[:-1]]
        features = torch.stack([F.mse_loss(student_map, fused_map) for student_map, fused_map in pairs]).mean()
        total = self.a * (task + self.task.loss(teacher, batch))
        reverse = distilled(self.task, kl, teacher, student.detach(), batch, t)
        total = total + self.b * (distill + reverse) + self.g * features
        return Losses(total + penalties(model) + penalties(self.trained), task, distill, student.detach())


def _map(x: Tensor) -> Tensor:
    """Return the mean of squares over channels (axis 1), scaled to length 1 per sample; none over features."""
    squares = x.float().square()
    squares = squares.mean(1) if x.dim() > 2 else squares
    return F.normalize(squares.flatten(1), dim=1)


def check_teachers(widths: Sequence[int]) -> None:
    """Raise a ValueError unless `widths` are the bits, 2 to 8, of one teacher or more."""
    if not widths:
        raise ValueError("teachers is empty; expected {bits: prepared network}, e.g. of 4, 6 and 8 bits")
    for bits in widths:
        check_bits(bits, "teachers' bits", both_signs=True)
