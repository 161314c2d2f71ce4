"""Optimisers and schedules from torch, with a group of their own for the quantizers' ranges."""

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from spequant.quantizers import Quantizer

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["cosine", "one-cycle", "step"]


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, range_lr: float | None = None
) -> list[dict[str, Any]]:
    """Two groups: weights, at `lr` and `weight_decay`; ranges (PACT's clips, LSQ's steps), at `range_lr`, not decayed.

    range_lr: None for `lr`, which suits PACT and LSQ under SGD and AdamW alike: LSQ scales its gradient itself, and
      PACT's L2 term is in the loss, where AdamW's decoupled decay would not stand for it.
    """
    ranges = {id(p) for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    range_lr = lr if range_lr is None else range_lr
    groups = [
        {"params": [p for p in parameters if id(p) not in ranges], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in ranges], "lr": range_lr, "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def make_optimizer(name: OptimizerName, groups: Iterable[dict[str, Any]], *, momentum: float = 0.9) -> Optimizer:
    """torch's SGD (with `momentum`) or AdamW over `parameter_groups`."""
    groups = list(groups)
    fused = groups[0]["params"][0].device.type == "cuda"
    if name == "sgd":
        return SGD(groups, momentum=momentum, fused=fused)
    if name == "adamw":
        return AdamW(groups, fused=fused)
    raise ValueError(f"optimizer is {name!r}; expected 'sgd' or 'adamw'")


def make_schedule(name: ScheduleName, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Stepped once a training step, over `steps` in all.

    cosine: from lr to 0. one-cycle: up to lr over the first fifth, cosine to 0 (Smith 2018, momentum constant); fewer
      than 5 steps are the first of 5.
    step: x 0.1 at 3/10 and 6/10, the paper's 60 and 120 of 200 epochs.
    """
    if name == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    if name == "one-cycle":
        peaks = [g["lr"] for g in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=max(6, steps + 1), pct_start=0.2, cycle_momentum=False)
    if name == "step":
        return MultiStepLR(optimizer, [steps * 3 // 10, steps * 6 // 10])
    raise ValueError(f"schedule is {name!r}; expected 'cosine', 'one-cycle' or 'step'")
