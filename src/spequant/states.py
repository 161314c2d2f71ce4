"""States of networks that come out of a file."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def versioned(model: nn.Module, state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """`state` with its modules' versions, or where it has none, as out of a file, those of `model`: torch keeps them
    beside the tensors, and some networks (MNASNet) load nothing without."""
    found = OrderedDict(state)
    found._metadata = getattr(state, "_metadata", None) or model.state_dict()._metadata  # type: ignore[attr-defined]
    return found
