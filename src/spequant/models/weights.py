"""Float weights from a file, checked against the network that they are for."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load `.safetensors`, or a torch pickle (tensors only: `weights_only=True`), into `model`, every name and shape.

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
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {error}") from error
