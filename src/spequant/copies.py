"""Copies of networks."""

import copy
from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def copied(network: Network) -> Network:
    """A deep copy of `network`. Tensors that it keeps and computes anew at each forward (a pruned weight, one under
    torch's older weight or spectral norm), which copy.deepcopy refuses, are copied as they are."""
    kept = (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return copy.deepcopy(network, {id(value): value.detach().clone() for value in kept if value.grad_fn is not None})
