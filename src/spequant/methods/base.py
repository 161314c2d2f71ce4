"""What a method returns, and the terms that every method adds. The methods themselves have a file each."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spequant.quantizers import Quantizer


@dataclass(frozen=True)
class Losses:
    """0-dim tensors. total: what to call backward on (task + weight x distill + the quantizers' penalties);
    task: on the labels; distill: to the teacher, before its weight (0 where there is none)."""

    total: Tensor
    task: Tensor
    distill: Tensor
    logits: Tensor  # the student's, as its task makes them: (batch, classes) ...; detached


class Method(Protocol):
    def __call__(self, model: nn.Module, batch: Any) -> Losses: ...


def penalties(model: nn.Module) -> Tensor | float:
    """Sum of the quantizers' own loss terms (PACT's L2 term on its clip): some operations in all, not some a layer."""
    ranges: dict[float, list[Tensor]] = {}
    for module in model.modules():
        if isinstance(module, Quantizer) and (decayed := module.decayed()) is not None:
            ranges.setdefault(decayed[1], []).append(decayed[0].flatten())
    terms = [0.5 * factor * torch.cat(group).square().sum() for factor, group in ranges.items()]
    return torch.stack(terms).sum() if terms else 0.0


def check_weight(value: float, argument: str) -> None:
    if not value >= 0:
        raise ValueError(f"{argument} is {value!r}; expected a number of 0 or more")


def check_temperature(value: float) -> None:
    if not value > 0:
        raise ValueError(f"temperature is {value!r}; expected a number above 0, e.g. 1 to 4")
