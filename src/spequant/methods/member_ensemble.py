"""PMWAE: online distillation from members that differ in activation precision (WCNC 2023).

    L = H(y, p_L) + mean_i H(y, p_i) + lambda T^2 KL(p_E || p_L),   z_E = sum_i a_i z_i
    a = softmax_i(<z_L, z_i> / sqrt(C)),   p = softmax(z / T) in the KL term

| symbol | here |
|---|---|
| z_L: the leader, which is the network that is exported | `student` |
| z_i: the members, which have the leader's weights and other activation bits | `members`, `widths` |
| z_E, a_i: the ensemble, and the attention of the leader to its members, per sample; C classes | `_ensemble` |
| T, lambda | `temperature`, `weight` |

We had only the abstract: one set of weights for all members, the attention and the form of the loss are ours. All
members learn. The ensemble is a target for the leader and gets no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.methods.base import Losses, penalties
from spequant.methods.losses import kl
from spequant.methods.tasks import Detection, Regression, Task, check_task, distilled
from spequant.methods.widths import SeveralWidths, at_widths


class MemberEnsemble(SeveralWidths):
    """PMWAE: passes at other activation widths (members) learn, and teach the model (leader) together.

    `Losses.distill` is the KL term, before lambda.

    Args:
        widths: Bits per member, for the activations that have the leader's fewest bits.
        temperature: T, above 0.
        weight: lambda, 0 or more.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range, or `widths` is empty.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(SeveralWidths.Settings):
        """PMWAE: members at more activation bits teach together."""

        def make(self, task: Task | None = None) -> "MemberEnsemble":
            return MemberEnsemble(self.widths, temperature=self.temperature, weight=self.weight, task=task)

    def __init__(
        self,
        widths: Sequence[int] = (4, 8),
        *,
        temperature: float = 1.0,
        weight: float = 1.0,
        task: Task | None = None,
    ):
        super().__init__(widths, temperature=temperature, weight=weight, task=task)
        check_task(self.task, (Regression, Detection), "MemberEnsemble", "its attention is over classes")

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        student = self.task.logits(model, batch)
        members = at_widths(model, self.widths, self.task, batch)
        task = self.task.loss(student, batch)
        members_task = torch.stack([self.task.loss(z, batch) for z in members]).mean()
        target = _ensemble(student, members)
        distill = distilled(self.task, kl, student, target, batch, self.temperature)
        return Losses(task + members_task + self.weight * distill + penalties(model), task, distill, student.detach())


@torch.no_grad()
def _ensemble(leader: Tensor, members: Sequence[Tensor]) -> Tensor:
    masked = torch.isneginf(leader)  # classes to leave out
    z = torch.stack([m.float().masked_fill(masked, 0.0) for m in members])
    score = (leader.float().masked_fill(masked, 0.0) * z).sum(-1, keepdim=True)
    attention = F.softmax(score / leader.shape[-1] ** 0.5, dim=0)
    return (attention * z).sum(0).masked_fill(masked, float("-inf"))
