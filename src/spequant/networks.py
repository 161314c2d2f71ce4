"""Float networks: the kinds of layers that the library quantizes, the head, copies, and states out of files."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
EMBEDDINGS = (nn.Embedding,)
"""Quantized in their weight alone: what they read are indices."""
LEFT_FLOAT = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.EmbeddingBag)
"""Modules of torch with weights that the library does not quantize, and says so."""


def head_of(network: nn.Module) -> str:
    """The name of the head of the float `network`: the last of its `QUANTIZABLE` layers, in the order of
    `named_modules`. Its input is the network's penultimate feature. ValueError: there is none."""
    layers = [name for name, module in network.named_modules() if name and isinstance(module, QUANTIZABLE)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no linear layer or convolution inside; expected a network with a head"
        )
    return layers[-1]


def copied(network: Network) -> Network:
    """A deep copy of `network`. Tensors that it keeps and computes anew at each forward (a pruned weight, one under
    torch's older weight or spectral norm), which copy.deepcopy refuses, are copied as they are."""
    kept = (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return copy.deepcopy(network, {id(value): value.detach().clone() for value in kept if value.grad_fn is not None})


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
