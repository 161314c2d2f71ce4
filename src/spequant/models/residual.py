"""The marked residual addition of this folder's networks."""

from torch import Tensor, nn


class ResidualAdd(nn.Module):
    """branch + shortcut, as a module that preparation recognises as a residual addition.

    The class attribute `residual_addition = True` is the mark. A network may mark additions of another class by it, and
    does not need this one.
    """

    residual_addition = True

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch + shortcut
