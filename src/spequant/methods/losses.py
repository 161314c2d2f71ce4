"""Distillation losses: functions of student logits, teacher logits and temperature. fp32 throughout.

Logits: (batch, classes), or (batch, parts, classes) of several answers a sample, each with a softmax of its own; the
mean is over all of them.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spequant.names import chosen

DistillLoss = Callable[[Tensor, Tensor, float], Tensor]
"""(student logits, teacher logits, temperature) -> 0-dim loss. A user's own function of this form serves as well."""


def _check(student: Tensor, teacher: Tensor) -> None:
    """ValueError: logits that a softmax cannot compare."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; expected "
            "the same: a teacher of the same classes"
        )
    if student.shape[-1] == 1:
        raise ValueError(
            f"logits have shape {tuple(student.shape)}, one class, whose softmax is 1 whatever the network says: "
            "nothing would be distilled. For a regression or one logit give the method a loss of your own, e.g. "
            "loss=lambda student, teacher, temperature: F.mse_loss(student, teacher)"
        )


def cosine(
    student: Float[Tensor, "batch *parts classes"],
    teacher: Float[Tensor, "batch *parts classes"],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """T^2 mean(1 - cos(p_T, p_S)), p = softmax(z / T): SPEQ's loss (arXiv 2009.14502; the T^2 is ours, as with KL).
    ValueError: fewer than two classes, or two shapes.

    In [0, T^2]. Its gradient: g = -(p_T / (|p_T||p_S|) - c p_S / |p_S|^2), dL/dz_S = T p_S (g - <p_S, g>) / batch.
    """
    _check(student, teacher)
    p_s = F.softmax(student.float() / temperature, dim=-1)
    p_t = F.softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * (1 - F.cosine_similarity(p_t, p_s, dim=-1)).mean()


def kl(
    student: Float[Tensor, "batch *parts classes"],
    teacher: Float[Tensor, "batch *parts classes"],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """T^2 mean KL(p_T || p_S), p = softmax(z / T) (Hinton et al., arXiv 1503.02531).
    ValueError: fewer than two classes, or two shapes."""
    _check(student, teacher)
    log_s = F.log_softmax(student.float() / temperature, dim=-1)
    log_t = F.log_softmax(teacher.float() / temperature, dim=-1)
    gap = (log_t - log_s).masked_fill(torch.isneginf(log_t), 0.0)  # classes masked with -inf count for nothing
    return temperature**2 * (log_t.exp() * gap).sum(-1).mean()


def ensemble(passes: Sequence[Tensor], temperature: float) -> Tensor:
    """Logits whose softened softmax is the mean of those of `passes`: the soft label of several teacher passes."""
    if len(passes) == 1:
        return passes[0]
    logs = torch.stack([F.log_softmax(z.float() / temperature, dim=-1) for z in passes])
    return temperature * torch.logsumexp(logs, dim=0)  # the missing - log(passes) cancels in any softmax


by_name: dict[str, DistillLoss] = {"cosine": cosine, "kl": kl}


def loss_named(name: str) -> DistillLoss:
    """The loss of that name, or of a reference package.module:function or file.py:function. ValueError: neither."""
    return chosen("loss", name, by_name)
