"""Float weights from a file, checked against the network that loads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spequant.networks import head_of, versioned


def load_weights(model: nn.Module, path: str | Path, *, new_head: bool = False) -> None:
    """Load weights from a file into `model`; every name and shape has to agree.

    Args:
        model: a float network.
        path: a `.safetensors` file, or a torch pickle, from which only tensors are read (`weights_only=True`). The
            tensors may be under the key "state_dict", and their names may start with "module.".
        new_head: True loads everything except the last layer, which keeps its weights, whatever the file holds for it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its names or shapes are not those of the model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected float weights (.th, .pt or .safetensors)")
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is no readable weight file ({error}); fetch or write it anew") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__}; expected tensors by name, a state_dict")
    load_state(model, {n.removeprefix("module."): t for n, t in state.items()}, str(path), new_head=new_head)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, *, new_head: bool = False) -> None:
    """Load a state_dict into `model`; every name and shape has to agree.

    Args:
        model: a float network.
        state: tensors by name.
        source: where they are from, for the message.
        new_head: as in `load_weights`.

    Raises:
        ValueError: names or shapes are not those of the model.
    """
    head_state: dict[str, Tensor] = {}
    if new_head:
        head = f"{head_of(model)}."
        state = {n: t for n, t in state.items() if not n.startswith(head)}
        head_state = {n: t for n, t in model.state_dict().items() if n.startswith(head)}
    try:
        model.load_state_dict(versioned(model, {**state, **head_state}))
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit {type(model).__name__}: {error}") from error
