"""Float weights from a file, checked against the network that they are for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spequant.networks import head_of, versioned


def load_weights(model: nn.Module, path: str | Path, *, new_head: bool = False) -> None:
    """Load `.safetensors`, or a torch pickle (tensors only: `weights_only=True`), into `model`, every name and shape.

    new_head: all but the last layer, which keeps its own (random) weights, whatever the file holds for it.
    Keys may stand under "state_dict" and start with "module.". FileNotFoundError; ValueError: a damaged file, or names
    or shapes that are not the model's.
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
    """Load a state_dict; `source`: what an error calls it; new_head: as in `load_weights`. ValueError: it does not
    fit."""
    kept: dict[str, Tensor] = {}
    if new_head:
        head = f"{head_of(model)}."
        state = {n: t for n, t in state.items() if not n.startswith(head)}
        kept = {n: t for n, t in model.state_dict().items() if n.startswith(head)}
    try:
        model.load_state_dict(versioned(model, {**state, **kept}))
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit {type(model).__name__}: {error}") from error
