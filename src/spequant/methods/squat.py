"""SQuaT: a student-quantized teacher for feature distillation (AISTATS 2026).

    L = lambda_L H(y, p_S) + lambda T^2 KL(p_T || p_S) + lambda_F MSE(Q_S(f_S), Q_S(f_T)),   p = softmax(z / T)

| symbol | here |
|---|---|
| f_S, f_T: input of the last layer before the head, in the student and in the float teacher | `layer` |
| Q_S: the student's quantizer of that input, with its range and bits; no gradient through Q_S(f_T) | `act_quantizer` |
| T, lambda, lambda_F | `temperature`, `weight`, `feature_weight` |
| lambda_L | `label_weight` |

Known from its released code, which compares the inputs of the last block's second convolution, and whose runs on
CIFAR-10 have T = 4, lambda = lambda_F = 1 and lambda_L = 0. Its backward pass is EWGS, which is an option of the
quantizers: `spequant.quantizers.set_ewgs(model, .001)`. For sequences, the mean is over tokens, without padding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spequant.methods.base import (
    Losses,
    Start,
    TaughtSettings,
    check_temperature,
    check_weight,
    frozen,
    penalties,
)
from spequant.methods.losses import kl, squared_error
from spequant.methods.parts import Recorder, part_of, tokens
from spequant.methods.tasks import Classification, Detection, Task, check_task, distilled
from spequant.networks import QUANTIZABLE


class SQuaT:
    """SQuaT: the student's quantized feature learns the teacher's feature, quantized by the student's quantizer.

    `Losses.distill` is the sum of the two terms of the teacher, weights included.

    Args:
        teacher: The float network, which is copied and frozen.
        temperature: T, above 0.
        weight: lambda, of the logits' term, 0 or more.
        feature_weight: lambda_F, 0 or more.
        label_weight: lambda_L, 0 or more.
        layer: Name of the layer whose input is the feature; None: the last one before the head.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range, or the network has no layer before its head; when called, if the student
            does not quantize the input of `layer`.

    References:
        SQuaT: Student-Quantized Teacher for Feature Distillation, AISTATS 2026.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaughtSettings):
        """SQuaT: the student learns the teacher's feature, quantized by its own quantizer, and its logits."""

        temperature: float = 4.0
        """T, the temperature of the softmax"""
        weight: float = 1.0
        """lambda, the weight of the KL divergence to the teacher's logits"""
        feature_weight: float = 1.0
        """lambda_F, the weight of the squared error between quantized features"""
        label_weight: float = 0.0
        """lambda_L, the weight of the loss on the labels"""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)
            for name in ("weight", "feature_weight", "label_weight"):
                check_weight(getattr(self, name), name)

        def build(self, start: Start) -> "SQuaT":
            names = ("temperature", "weight", "feature_weight", "label_weight")
            options = {name: getattr(self, name) for name in names}
            return SQuaT(self.teacher_of(start), task=start.task, **options)

        def check_student(self, act_bits: int | None, *, mixed: bool) -> None:
            if act_bits is None:
                raise ValueError("act_bits is None; expected bits: SQuaT compares quantized activations")

    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        weight: float = 1.0,
        feature_weight: float = 1.0,
        label_weight: float = 0.0,
        layer: str | None = None,
        task: Task | None = None,
    ):
        check_temperature(temperature)
        for value, name in ((weight, "weight"), (feature_weight, "feature_weight"), (label_weight, "label_weight")):
            check_weight(value, name)
        self.temperature, self.weight = float(temperature), float(weight)
        self.feature_weight, self.label_weight = float(feature_weight), float(label_weight)
        self.task = task or Classification()
        check_task(self.task, (Detection,), "SQuaT", "the features of a detector are of other regions per network")
        self.teacher = frozen(teacher)
        self.layer = before_head(self.teacher) if layer is None else layer
        self.student_feature, self.teacher_feature = (Recorder([self.layer], inputs=True) for _ in range(2))

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        with torch.no_grad(), self.teacher_feature.on(self.teacher) as teacher_inputs:
            teacher = self.task.logits(self.teacher, batch)
        with self.student_feature.on(model) as student_inputs:
            student = self.task.logits(model, batch)
        task = self.task.loss(student, batch)
        quantizer = self._quantizer_in(model)
        with torch.no_grad():
            target = quantizer(teacher_inputs[self.layer])
        feature = squared_error(quantizer(student_inputs[self.layer]), target, tokens(target, batch))
        divergence = distilled(self.task, kl, student, teacher, batch, self.temperature)
        distill = self.weight * divergence + self.feature_weight * feature
        return Losses(self.label_weight * task + distill + penalties(model), task, distill, student.detach())

    def _quantizer_in(self, model: nn.Module) -> nn.Module:
        quantizer = getattr(part_of(model, self.layer), "act_quantizer", None)
        if quantizer is None:
            raise ValueError(f"layer is {self.layer!r}, whose input is not quantized; name another with layer=")
        return quantizer


def before_head(network: nn.Module) -> str:
    """Return the name of the last linear layer or convolution but one, in the order of `named_modules`.

    Raises:
        ValueError: There are fewer than two.
    """
    layers = [name for name, module in network.named_modules() if name and isinstance(module, QUANTIZABLE)]
    if len(layers) < 2:
        raise ValueError(f"{type(network).__name__} has the layers {layers}; expected two or more: name one as layer=")
    return layers[-2]
