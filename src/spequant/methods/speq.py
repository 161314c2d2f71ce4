"""SPEQ: stochastic precision ensemble self-distillation (Boo, Shin, Choi, Sung, AAAI 2021, arXiv 2009.14502).

    L = CE(y, z_S) + lambda T^2 mean(1 - cos(p_T, p_S)),   p = softmax(z / T)

| symbol | here |
|---|---|
| z_S, the n_A-bit student's logits | `student`, one forward with gradient |
| z_T, the teacher's: the same weights, each activation quantizer at n_H bits with probability u, else n_A | `teach` |
| n_H, u | `high_bits`, `probability`, or any other `policy` |
| T, lambda | `temperature`, `weight` |

The teacher gives no gradient: one forward more, no backward more. Known of the paper from second hand; open there and
ours to choose: T, lambda and the factor T^2, batch norm in the teacher's pass (batch statistics, running ones
untouched), dropout (as the student's mode).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spequant.calibration.batch_norm import MODES, Mode, batch_norm_mode
from spequant.methods.base import (
    CountsCalls,
    Losses,
    MethodSettings,
    Start,
    check_temperature,
    check_weight,
    penalties,
)
from spequant.methods.losses import DistillLoss, cosine, ensemble, loss_named
from spequant.methods.tasks import Classification, Task
from spequant.policies import Mix, Policy, Stochastic, precision
from spequant.processes import rank, unwrapped


class SPEQ(CountsCalls):
    """The method as a callable: `losses = SPEQ()(model, batch)`.

    high_bits, probability: n_H and u. policy: in their place, e.g. `Mix()`.
    loss: (student logits, teacher logits, temperature) -> 0-dim tensor; `cosine`, `kl` or your own.
    batch_norm: of the teacher's pass: "leave" (batch statistics, running ones untouched), "update", "eval".
    passes: teacher passes, each with its own draw, whose soft labels are averaged.
    seed, step: the draws follow from (seed, step, rank); `step` counts calls, set it when resuming.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """SPEQ: the network itself teaches, with some activations at higher precision."""

        high_bits: int = 8
        """n_H, the teacher's activation bits"""
        probability: float = 0.5
        """u, of n_H per layer and forward"""
        mix: bool = False
        """draw from all widths from 2 to 8 bits in place of n_A and n_H"""
        loss: str = "cosine"
        """cosine, kl, or a function of your own: package.module:function or file.py:function"""
        temperature: float = 1.0
        """T"""
        weight: float = 1.0
        """lambda, of the distillation loss"""
        batch_norm: Mode = "leave"
        """of the teacher's pass: leave (batch statistics, running ones untouched), update, eval"""
        passes: int = 1
        """teacher passes, averaged"""

        def __post_init__(self) -> None:
            self.made()
            unread = [n for n in ("high_bits", "probability") if getattr(self, n) != getattr(type(self), n)]
            if self.mix and unread:
                raise ValueError(
                    f"{unread[0]} is {getattr(self, unread[0])!r}, which has no effect with mix; expected "
                    f"{getattr(type(self), unread[0])!r}"
                )

        def made(self, task: Task | None = None, seed: int = 0) -> "SPEQ":
            """The method; ValueError: a setting out of range."""
            return SPEQ(
                self.high_bits,
                self.probability,
                policy=Mix() if self.mix else None,
                loss=loss_named(self.loss),
                temperature=self.temperature,
                weight=self.weight,
                batch_norm=self.batch_norm,
                passes=self.passes,
                task=task,
                seed=seed,
            )

        def build(self, start: Start) -> "SPEQ":
            return self.made(start.task, start.seed)

        def check_student(self, act_bits: int | None, *, mixed: bool) -> None:
            if act_bits is None:
                raise ValueError("act_bits is None; expected bits: the teacher differs by its activations' precision")
            if not self.mix and not mixed and self.high_bits <= act_bits:
                raise ValueError(
                    f"high_bits is {self.high_bits!r}; expected more than act_bits, {act_bits}: the teacher would be "
                    "the student"
                )

    def __init__(
        self,
        high_bits: int = 8,
        probability: float = 0.5,
        *,
        policy: Policy | None = None,
        loss: DistillLoss = cosine,
        temperature: float = 1.0,
        weight: float = 1.0,
        batch_norm: Mode = "leave",
        passes: int = 1,
        task: Task | None = None,
        seed: int = 0,
    ):
        check_temperature(temperature)
        check_weight(weight, "weight")
        if batch_norm not in MODES:
            raise ValueError(f"batch_norm is {batch_norm!r}; expected one of {', '.join(map(repr, MODES))}")
        if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
            raise ValueError(f"passes is {passes!r}; expected a whole number of 1 or more")
        self.policy = policy or Stochastic(high_bits, probability)
        self.loss, self.temperature, self.weight = loss, float(temperature), float(weight)
        self.batch_norm: Mode = batch_norm
        self.passes, self.task, self.seed = passes, task or Classification(), seed

    def teach(self, model: nn.Module, batch: Any) -> Tensor:
        """The teacher's logits (batch, classes), detached; the precision is drawn from (seed, step, rank).

        A model in DistributedDataParallel is run inside it: nothing is synchronised, buffers neither. Not run under
        `no_grad`, so that a compiled model has one graph for both passes; what it saved is freed at the end of each.
        """
        model = unwrapped(model)
        logits = []
        with batch_norm_mode(model, self.batch_norm):
            for i in range(self.passes):
                draw = self.step * self.passes + i
                with precision(model, self.policy, seed=self.seed, step=draw, rank=rank()):
                    logits.append(self.task.logits(model, batch).detach())
        self.step += 1
        return ensemble(logits, self.temperature)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        teacher = self.teach(model, batch)
        student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        distill = self.loss(student, teacher, self.temperature)
        return Losses(task + self.weight * distill + penalties(model), task, distill, student.detach())
