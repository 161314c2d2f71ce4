"""States of networks that come out of a file."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def versioned(model: nn.Module, state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """`state` with its modules' versions, or where it has none, as out of a file, those of `model`: torch keeps them
    beside the tensors, and some networks (MNASNet) load nothing without. Not of torch's own layers, which know by the
    lack of it what a file of an older torch lacks."""
    known = getattr(state, "_metadata", None)
    if known is None:
        own = {name for name, m in model.named_modules() if type(m).__module__.startswith("torch.nn.")}
        known = {n: v for n, v in model.state_dict()._metadata.items() if n not in own}  # type: ignore[attr-defined]
    found = OrderedDict(state)
    found._metadata = known  # type: ignore[attr-defined]
    return found
