"""Float networks: the kinds of layers that the library quantizes, the head, copies, and states from files."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
"""Linear layers and convolutions: weight and input are quantized."""
EMBEDDINGS = (nn.Embedding,)
"""Only the weight is quantized, since the input is indices."""
LEFT_FLOAT = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.EmbeddingBag)
"""Modules of torch whose weights the library leaves float, with a warning."""


def head_of(network: nn.Module) -> str:
    """Return the name of the head: the last of the network's `QUANTIZABLE` layers, in the order of `named_modules`.

    The input of the head is the penultimate feature of the network.

    Args:
        network: a float network; a layer that is itself the network has no name and does not count.

    Raises:
        ValueError: the network has no such layer.
    """
    layers = [name for name, module in network.named_modules() if name and isinstance(module, QUANTIZABLE)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no linear layer or convolution inside; expected a network with a head"
        )
    return layers[-1]


def copied(network: AnyModule, *, share: bool = False) -> AnyModule:
    """Return a deep copy of `network`, also if it has weights that it computes at each forward.

    Such weights (pruned ones, and those of torch's older weight norm and spectral norm) are attributes with a history
    for autograd, which copy.deepcopy refuses; they are copied without their history.

    Args:
        network: Any network; it stays as it is.
        share: Whether the copy has the parameters and buffers of `network` itself, so that it takes no memory.
    """
    tensors = (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))
    memo = {id(value): value.detach().clone() for value in tensors if value.grad_fn is not None}
    if share:
        memo |= {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo)


def versioned(model: nn.Module, state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return `state` with the versions of its modules, which some networks (MNASNet) need in order to load a state.

    torch keeps the versions in an attribute of the state_dict, which files do not store. A state without versions gets
    those of `model`, except for layers of torch: these take a missing version to mean that the file is of an older
    torch and may lack some tensors.

    Args:
        model: the network that the state is for.
        state: tensors by name, from `state_dict` or from a file.
    """
    versions = getattr(state, "_metadata", None)
    if versions is None:
        layers = {name for name, m in model.named_modules() if type(m).__module__.startswith("torch.nn.")}
        metadata: dict[str, Any] = model.state_dict()._metadata  # type: ignore[attr-defined]
        versions = {name: version for name, version in metadata.items() if name not in layers}
    result = OrderedDict(state)
    result._metadata = versions  # type: ignore[attr-defined]
    return result
