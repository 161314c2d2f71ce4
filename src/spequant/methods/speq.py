"""SPEQ: stochastic precision ensemble self-distillation (Boo, Shin, Choi, Sung, AAAI 2021, arXiv 2009.14502).

    L = CE(y, z_S) + lambda T^2 mean(1 - cos(p_T, p_S)),   p = softmax(z / T)

| symbol | here |
|---|---|
| z_S: logits of the student, at n_A activation bits | `student`, one forward with gradient |
| z_T: logits of the teacher; each activation quantizer is at n_H bits with probability u, else at n_A | `teach` |
| n_H, u | `high_bits`, `probability`, or another `policy` |
| T, lambda | `temperature`, `weight` |

The teacher gives no gradient: it costs one more forward, and no backward. We know the paper from secondary sources, and
chose what these leave open: T, lambda and the factor T^2; batch norm in the teacher's pass (batch statistics, while the
running ones stay unchanged); dropout (as in the student's pass).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spequant.calibration.batch_norm import MODES, Mode, batch_norm_mode
from spequant.layers import act_quantizers
from spequant.methods.base import (
    CountsCalls,
    Losses,
    MethodSettings,
    Start,
    check_temperature,
    check_weight,
    penalties,
)
from spequant.methods.losses import DistillLoss, cosine, loss_named
from spequant.methods.tasks import Classification, Task, distilled, pooled
from spequant.policies import Mix, Policy, Stochastic, check_seed, precision
from spequant.processes import rank, unwrapped


class SPEQ(CountsCalls):
    """SPEQ: the network at stochastic activation precision is its own teacher.

    `Losses.distill` is the distillation term, before lambda.

    Args:
        high_bits: n_H, 1 to 8.
        probability: u, 0 to 1, per activation quantizer and forward.
        policy: Draws the teacher's precision in place of `high_bits` and `probability`, e.g. `Mix()`; None: these two.
        loss: (student logits, teacher logits, temperature) -> 0-dim tensor: `cosine`, `kl` or a function of your own.
        temperature: T, above 0.
        weight: lambda, 0 or more.
        batch_norm: Batch norm in the teacher's pass: "leave" (batch statistics; the running ones stay unchanged),
            "update" (batch statistics, which update the running ones) or "eval" (running statistics).
        passes: Teacher passes per call, 1 or more, each with its own draw; their softmaxes are averaged.
        task: Makes logits and the loss on the labels; None: classification.
        seed: 0 or more; draws depend on (seed, step, rank); `step` counts calls and can be set to resume training.

    Raises:
        ValueError: An argument is out of range; when called, if all activations of the model have the teacher's bits.

    Example:
        losses = SPEQ()(model, (images, labels))
        losses.total.backward()

    References:
        Boo, Shin, Choi and Sung, AAAI 2021, arXiv 2009.14502.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """SPEQ: the network is its own teacher, with some activations at higher precision."""

        high_bits: int = 8
        """n_H, the teacher's activation bits"""
        probability: float = 0.5
        """u, the probability of n_H per activation quantizer and forward"""
        mix: bool = False
        """draw from all widths from 2 to 8 bits, instead of n_A and n_H"""
        loss: str = "cosine"
        """cosine, kl, or a function of your own: package.module:function or file.py:function"""
        temperature: float = 1.0
        """T, the temperature of the softmax"""
        weight: float = 1.0
        """lambda, the weight of the distillation loss"""
        batch_norm: Mode = "leave"
        """batch norm in the teacher's pass: leave (batch statistics, running ones unchanged), update, eval"""
        passes: int = 1
        """teacher passes per step, whose softmaxes are averaged"""

        def __post_init__(self) -> None:
            self.make()
            ignored = [n for n in ("high_bits", "probability") if getattr(self, n) != getattr(type(self), n)]
            if self.mix and ignored:
                raise ValueError(
                    f"{ignored[0]} is {getattr(self, ignored[0])!r}, which has no effect with mix; expected "
                    f"{getattr(type(self), ignored[0])!r}"
                )

        def make(self, task: Task | None = None, seed: int = 0) -> "SPEQ":
            """Return the method; raise a ValueError if a setting is out of range."""
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
            return self.make(start.task, start.seed)

        def check_student(self, act_bits: int | None, *, mixed: bool) -> None:
            if act_bits is None:
                raise ValueError("act_bits is None; expected bits: the teacher differs in activation precision")
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
        check_seed(seed)
        self.policy = policy or Stochastic(high_bits, probability)
        self.loss, self.temperature, self.weight = loss, float(temperature), float(weight)
        self.batch_norm: Mode = batch_norm
        self.passes, self.task, self.seed = passes, task or Classification(), seed

    def teach(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the teacher's logits, e.g. (batch, classes), detached; the precision is drawn from (seed, step, rank).

        A model in DistributedDataParallel runs without the wrapper: neither gradients nor buffers are synchronised.
        The pass does not use `no_grad`, so that a compiled model has one graph for teacher and student; the activations
        that it saves for backward are freed at its end.

        Args:
            model: The prepared network.
            batch: A batch in the form that the task reads.

        Raises:
            ValueError: In the first call, if no activation has fewer bits than the policy can draw.
        """
        model = unwrapped(model)
        if self.step == 0:
            self._check_student(model)
        logits = []
        with batch_norm_mode(model, self.batch_norm):
            for i in range(self.passes):
                draw = self.step * self.passes + i
                with precision(model, self.policy, seed=self.seed, step=draw, rank=rank()):
                    logits.append(self.task.logits(model, batch).detach())
        self.step += 1
        return pooled(self.task, logits, self.temperature)

    def _check_student(self, model: nn.Module) -> None:
        """Refuse a network that no draw changes: the teacher would be the student, and nothing be distilled."""
        highest = getattr(self.policy, "highest", None)
        bits = sorted({q.bits for q in act_quantizers(model).values() if q.bits is not None})
        if bits and highest is not None and highest <= bits[0]:
            raise ValueError(
                f"the teacher draws at most {highest} bits, and all activations of the model have {bits[0]} or more: "
                "it would be the student; prepare(act=...) with fewer bits, or use Retrain"
            )

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        teacher = self.teach(model, batch)
        student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        distill = distilled(self.task, self.loss, student, teacher, batch, self.temperature)
        return Losses(task + self.weight * distill + penalties(model), task, distill, student.detach())
