"""Distillation losses: functions of student logits, teacher logits and temperature, computed in fp32.

Logits have shape (batch, classes), or (batch, parts, classes) if a sample has several answers. Each part has its own
softmax, and the mean is over samples and parts. `gaussian` has the same losses of values instead of classes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spequant.names import named_or_imported

DistillLoss = Callable[[Tensor, Tensor, float], Tensor]
"""(student logits, teacher logits, temperature) -> 0-dim loss. It can be a function of your own."""


def _check(student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError unless both logits have the same shape and two classes or more."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; expected "
            "the same: a teacher of the same classes"
        )
    if student.shape[-1] == 1:
        raise ValueError(
            f"logits have shape {tuple(student.shape)}, one class, whose softmax is 1 whatever the network says: "
            "nothing would be distilled. For values give the method the task Regression(), for one logit MultiLabel(), "
            "or a loss of your own, e.g. loss=lambda student, teacher, temperature: F.mse_loss(student, teacher)"
        )


def cosine(
    student: Float[Tensor, "batch *parts classes"],
    teacher: Float[Tensor, "batch *parts classes"],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return T^2 mean(1 - cos(p_T, p_S)), p = softmax(z / T): SPEQ's loss. The factor T^2 is ours, as in `kl`.

    Gradient: dL/dz_S = T p_S (g - <p_S, g>) / batch, with g = -(p_T / (|p_T||p_S|) - c p_S / |p_S|^2), where c is
    the cosine.

    Args:
        student: z_S.
        teacher: z_T.
        temperature: T, above 0.

    Returns:
        The loss, in [0, T^2].

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.

    References:
        Boo, Shin, Choi and Sung, AAAI 2021, arXiv 2009.14502.
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
    """Return T^2 mean KL(p_T || p_S), p = softmax(z / T), in nats.

    Args:
        student: z_S.
        teacher: z_T; classes masked with -inf are left out.
        temperature: T, above 0.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.

    References:
        Hinton, Vinyals and Dean 2015, arXiv 1503.02531.
    """
    _check(student, teacher)
    log_s = F.log_softmax(student.float() / temperature, dim=-1)
    log_t = F.log_softmax(teacher.float() / temperature, dim=-1)
    gap = (log_t - log_s).masked_fill(torch.isneginf(log_t), 0.0)
    return temperature**2 * (log_t.exp() * gap).sum(-1).mean()


def cross_entropy(
    student: Float[Tensor, "batch *parts classes"],
    teacher: Float[Tensor, "batch *parts classes"],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return T^2 mean H(p_T, p_S), p = softmax(z / T), in nats: `kl` plus the teacher's entropy.

    Args:
        student: z_S.
        teacher: z_T; classes masked with -inf are left out.
        temperature: T, above 0.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.
    """
    _check(student, teacher)
    log_s = F.log_softmax(student.float() / temperature, dim=-1)
    log_s = log_s.masked_fill(torch.isneginf(log_s), 0.0)
    return -(temperature**2) * (F.softmax(teacher.float() / temperature, dim=-1) * log_s).sum(-1).mean()


def _gaussian_kl(gap: Tensor, temperature: float) -> Tensor:
    return temperature * gap.square().mean() / 2


def _gaussian_cosine(gap: Tensor, temperature: float) -> Tensor:
    return temperature**2 * -torch.expm1(-gap.square() / (4 * temperature)).mean()


def squared_error(
    student: Float[Tensor, "batch *places features"],
    teacher: Float[Tensor, "batch *places features"],
    mask: Tensor | None = None,
) -> Float[Tensor, ""]:
    """Return mean((f_S - f_T)^2) of features, fp32.

    Args:
        student: f_S.
        teacher: f_T.
        mask: fp32 (batch, length, 1), as `parts.tokens` returns it: the mean is then over tokens, without padding.
            None: over everything.

    Returns:
        The loss, 0 or more, in squared units of the features.

    Raises:
        ValueError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's features have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; expected "
            "the same: a teacher of the same width there"
        )
    errors = F.mse_loss(student.float(), teacher.float(), reduction="none")
    return errors.mean() if mask is None else (errors * mask).sum() / (mask.sum() * errors.shape[-1])


gaussian: dict[DistillLoss, Callable[[Tensor, float], Tensor]] = {
    kl: _gaussian_kl,
    cross_entropy: _gaussian_kl,
    cosine: _gaussian_cosine,
}
"""{loss: the same loss of two Gaussians of variance T s^2, a function of (difference of their means / s, T)}

KL is T d^2 / 2, and so is the cross-entropy, but for a constant; 1 - the cosine between the densities is
1 - exp(-d^2 / (4 T)). Both have the factor T^2, as above."""


def ensemble(passes: Sequence[Tensor], temperature: float) -> Tensor:
    """Return logits whose softmax at `temperature` is the mean of the softmaxes of `passes`.

    Args:
        passes: Logits of one or more teacher passes, all of the same shape.
        temperature: T, above 0.
    """
    if len(passes) == 1:
        return passes[0]
    logs = torch.stack([F.log_softmax(z.float() / temperature, dim=-1) for z in passes])
    return temperature * torch.logsumexp(logs, dim=0)  # a softmax cancels the constant -log(len(passes))


by_name: dict[str, DistillLoss] = {"cosine": cosine, "kl": kl}
"""{name in recipes: loss}"""


def loss_named(name: str) -> DistillLoss:
    """Return the loss called `name`.

    Args:
        name: A key of `by_name`, or a reference package.module:function or file.py:function.

    Raises:
        ValueError: There is no such loss.
    """
    return named_or_imported("loss", name, by_name)
