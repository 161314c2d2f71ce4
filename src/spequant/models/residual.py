"""The marked residual addition that all networks here share; nothing else."""

from torch import Tensor, nn


class ResidualAdd(nn.Module):
    """branch + shortcut. The class attribute `residual_addition = True` marks the addition: code that quantizes
    networks finds it by that attribute, so that any network can mark its own without importing this class."""

    residual_addition = True

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch + shortcut
