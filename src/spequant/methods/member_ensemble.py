"""PMWAE: online distillation from members that differ by activation precision (WCNC 2023).

    L = H(y, p_L) + mean_i H(y, p_i) + lambda T^2 KL(p_E || p_L),   z_E = sum_i a_i z_i
    a = softmax_i(<z_L, z_i> / sqrt(C)),   p = softmax(z / T) in the KL term

| symbol | here |
|---|---|
| p_L: the leader's, the network as it ships | `student` |
| p_i: members, the same weights with low-bit activations at `widths` | `members` |
| a_i: attention of the leader to the members, a sample | `_ensemble` |
| T, lambda | `temperature`, `weight` |

Only the abstract is known here: one weight set for all members, the attention and the loss's form are ours. All members
learn; the ensemble gives the leader a target without gradient.
"""

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
from spequant.methods.tasks import Classification, Task
from spequant.methods.widths import at_widths
from spequant.quantizers.base import check_bits


class MemberEnsemble:
    """widths: activation bits of the members, where the leader has its fewest. `Losses.distill` is the KL term."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """PMWAE: members at more activation bits teach together."""

        widths: tuple[int, ...] = (4, 8)
        """activation bits in addition to the network's own"""
        temperature: float = 1.0
        """T"""
        weight: float = 1.0
        """lambda, of the distillation loss"""

        def __post_init__(self) -> None:
            self.made()

        def made(self, task: Task | None = None) -> "MemberEnsemble":
            """The method; ValueError: a setting out of range."""
            return MemberEnsemble(self.widths, temperature=self.temperature, weight=self.weight, task=task)

        def build(self, start: Start) -> "MemberEnsemble":
            return self.made(start.task)

    def __init__(
        self,
        widths: Sequence[int] = (4, 8),
        *,
        temperature: float = 1.0,
        weight: float = 1.0,
        task: Task | None = None,
    ):
        check_temperature(temperature)
        check_weight(weight, "weight")
        if not widths:
            raise ValueError("widths is empty; expected the members' activation bits, e.g. (4, 8)")
        for width in widths:
            check_bits(width, "widths")
        self.widths, self.task = tuple(widths), task or Classification()
        self.temperature, self.weight = float(temperature), float(weight)

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        members = at_widths(model, self.widths, self.task, batch)
        task = self.task.loss(student, batch)
        theirs = torch.stack([self.task.loss(z, batch) for z in members]).mean()
        distill = kl(student, _ensemble(student, members), self.temperature)
        return Losses(task + theirs + self.weight * distill + penalties(model), task, distill, student.detach())


@torch.no_grad()
def _ensemble(leader: Tensor, members: Sequence[Tensor]) -> Tensor:
    masked = torch.isneginf(leader)  # classes that count for nothing
    z = torch.stack([m.float().masked_fill(masked, 0.0) for m in members])
    score = (leader.float().masked_fill(masked, 0.0) * z).sum(-1, keepdim=True)
    attention = F.softmax(score / leader.shape[-1] ** 0.5, dim=0)
    return (attention * z).sum(0).masked_fill(masked, float("-inf"))
