"""GPLQ: activations first, weights later (Liang, Liu and Wu 2025, arXiv 2506.11784).

    first   weights float, activations quantized:   L = MSE(f_S, f_T)
    then    weights and activations quantized:      L = H(y, p_S)

| symbol | here |
|---|---|
| f_S, f_T: input of the head: in the student, behind its quantizer; in the frozen float teacher | `head` |
| share of the calls with float weights | `share` |
| ranges of the weights, found when these calls end | `least_squares` |

We know the abstract alone: activations are trained with float weights, by mimicking features, for one epoch; weights
are quantized after training. That is `share` = 1, a run of one epoch. Training on with quantized weights, `share` below
1, is ours, and so is the plain squared error. For sequences, the mean is over tokens, without padding. The head gets no
gradient in the first calls, and no weight decay.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spequant.layers import QuantizedLayer, weight_quantizers
from spequant.methods.base import CountsCalls, Losses, Start, TaughtSettings, check_steps, frozen, penalties
from spequant.methods.losses import squared_error
from spequant.methods.parts import Recorder, part_of, tokens
from spequant.methods.tasks import Classification, Detection, Task, check_task
from spequant.networks import head_of
from spequant.policies import unquantized
from spequant.processes import world
from spequant.quantizers import least_squares


class GPLQ(CountsCalls):
    """Activations learn first, with float weights, to give the float network's feature; weights are quantized later.

    `Losses.distill` is the squared error, and `Losses.total` leaves the labels out; with quantized weights it is the
    loss on the labels, and `Losses.distill` is 0. When the calls with float weights end, in the last of them, weights
    get their ranges, those of least squared error. Batch norm's statistics are then of float weights: measure them anew
    (`reestimate_batch_norm`), as a run does at its end.

    Args:
        teacher: The float network, which is copied and frozen.
        steps: Calls of the method in the whole training, 1 or more.
        share: Share of the calls with float weights, above 0, at most 1.
        head: Name of the layer whose input is the feature; None: the last layer.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range; there are several processes, which wait for gradients of all parameters.

    References:
        Liang, Liu and Wu 2025, arXiv 2506.11784 (abstract).
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """GPLQ: activations learn first, with float weights, by the float network's feature; weights later."""

        share: float = 1.0
        """share of training with float weights, above 0, at most 1, where weights are quantized after training"""

        def __post_init__(self) -> None:
            _check_share(self.share)

        def build(self, start: Start) -> "GPLQ":
            return GPLQ(self.teacher_of(start), steps=start.steps, share=self.share, task=start.task)

        @property
        def weights_begin_float(self) -> bool:
            return True

        def check_student(self, act_bits: int | None, *, mixed: bool) -> None:
            if act_bits is None and not mixed:
                raise ValueError("act_bits is None; expected bits: GPLQ trains quantized activations")

    def __init__(
        self,
        teacher: nn.Module,
        *,
        steps: int,
        share: float = 1.0,
        head: str | None = None,
        task: Task | None = None,
    ):
        check_steps(steps)
        _check_share(share)
        if world() > 1:
            raise ValueError(f"GPLQ gives the head no gradient at first; there are {world()} processes, expected one")
        self.float_calls = max(1, round(share * steps))
        self.task = task or Classification()
        check_task(self.task, (Detection,), "GPLQ", "the features of a detector are of other regions per network")
        self.teacher = frozen(teacher)
        self.head = head_of(self.teacher) if head is None else head
        self.student_feature, self.teacher_feature = (Recorder([self.head], inputs=True) for _ in range(2))

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        self.step += 1
        if self.step > self.float_calls:
            logits = self.task.logits(model, batch)
            task = self.task.loss(logits, batch)
            return Losses(task + penalties(model), task, task.new_zeros(()), logits.detach())
        with torch.no_grad(), self.teacher_feature.on(self.teacher) as teacher_inputs:
            self.task.logits(self.teacher, batch)
        with unquantized(weight_quantizers(model).values()), self.student_feature.on(model) as student_inputs:
            logits = self.task.logits(model, batch)
        student, teacher = student_inputs[self.head], teacher_inputs[self.head]
        quantizer = getattr(part_of(model, self.head), "act_quantizer", None)
        student = student if quantizer is None else quantizer(student)
        distill = squared_error(student, teacher, tokens(teacher, batch))
        if self.step == self.float_calls:
            _fit_weights(model)
        own = penalties(model, leaving=weight_quantizers(model).values())
        return Losses(distill + own, self.task.loss(logits, batch).detach(), distill, logits.detach())


def _fit_weights(model: nn.Module) -> None:
    """Give the quantizers of weights their ranges, by the least squared error."""
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
    for q, weight in {layer.weight_quantizer: layer.float_weight for layer in layers}.items():
        if q is not None and q.bits is not None:
            q.fit(weight.detach(), least_squares)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share is {share!r}; expected a share of training, above 0 and at most 1")
