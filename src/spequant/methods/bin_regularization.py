"""Bin regularization: the weights of a bin are pulled together (Han et al., ICCV 2021).

    L = H(y, p_S) + lambda L_BR,   L_BR = sum over layers and bins of (mean(w_i) - w^_i)^2 + var(w_i)

| symbol | here |
|---|---|
| w_i, w^_i: the float weights that a layer's quantizer rounds to its level i, and that level | `bin_errors` |
| lambda | `weight` |
| lambda = 0 in the first part of training, in which the steps of the quantizers settle | `warm_up` |

A mean's square and a variance together are the mean of (w - w^)^2 over the bin, which is what is computed; an empty bin
adds nothing. The equation and that ranges settle first (the paper's strategy S2) are known from a re-implementation,
lambda = 1 and the share .3 of training, too. Ours: no gradient through w^, and every quantized layer has the term.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spequant.methods.base import (
    CountsCalls,
    Losses,
    MethodSettings,
    Start,
    check_steps,
    check_weight,
    penalties,
)
from spequant.methods.parts import float_weights
from spequant.methods.tasks import Classification, Task
from spequant.quantizers import Quantizer


class BinRegularization(CountsCalls):
    """Training on the labels, with a term that pulls the float weights of each bin to their level.

    There is no teacher: `Losses.distill` is 0, and the term is in `Losses.total`.

    Args:
        steps: Calls of the method in the whole training, 1 or more.
        weight: lambda, 0 or more.
        warm_up: Share of the calls in which lambda is 0, 0 to 1.
        task: Makes logits and the loss on the labels; None: classification.

    Raises:
        ValueError: A number is out of range.

    References:
        Han, Li, Liu, Tian and Shan, ICCV 2021, Improving Low-Precision Network Quantization via Bin Regularization.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Bin regularization: training on the labels, with the weights of each bin pulled to their level."""

        weight: float = 1.0
        """lambda, the weight of the regularization"""
        warm_up: float = 0.3
        """share of training in which the weights are not pulled, 0 to 1"""

        def __post_init__(self) -> None:
            BinRegularization(steps=1, weight=self.weight, warm_up=self.warm_up)

        def build(self, start: Start) -> "BinRegularization":
            return BinRegularization(steps=start.steps, weight=self.weight, warm_up=self.warm_up, task=start.task)

    def __init__(self, *, steps: int, weight: float = 1.0, warm_up: float = 0.3, task: Task | None = None):
        check_steps(steps)
        check_weight(weight, "weight")
        if not 0 <= warm_up <= 1:
            raise ValueError(f"warm_up is {warm_up!r}; expected a share of training, 0 to 1")
        self.steps, self.weight, self.warm_up = steps, float(weight), float(warm_up)
        self.task = task or Classification()

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        warm = self.step < self.warm_up * self.steps
        self.step += 1
        logits = self.task.logits(model, batch)
        task = self.task.loss(logits, batch)
        total = task + penalties(model)
        if not warm:
            total = total + self.weight * torch.stack([bin_errors(w, q) for w, q in float_weights(model)]).sum()
        return Losses(total, task, task.new_zeros(()), logits.detach())


def bin_errors(weight: Float[Tensor, "..."], quantizer: Quantizer) -> Float[Tensor, ""]:
    """Return the sum over levels of the mean of (w - w^)^2 over the weights that are rounded to the level, 0-dim.

    Args:
        weight: The float weight.
        quantizer: Its calibrated quantizer.
    """
    with torch.no_grad():
        codes = quantizer.encode(weight).flatten().long()
        target = quantizer(weight)
    errors = (weight - target).float().square().flatten()
    counts, sums = (torch.zeros(quantizer.level_count(), device=errors.device) for _ in range(2))
    counts = counts.index_add(0, codes, torch.ones_like(errors))
    return (sums.index_add(0, codes, errors) / counts.clamp_min(1)).sum()
