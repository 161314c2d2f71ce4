"""Float weights from a file, in the shapes in which people save them, checked against the network that loads them."""

import argparse
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spequant.names import some_of
from spequant.networks import head_of, versioned

PREFIXES = ("module.", "model.")
"""Before all names of a state: of DataParallel and DDP, and of a network that is an attribute of what was saved."""
COMPILED = "_orig_mod."
"""In the names of what torch.compile was applied to."""
AVERAGES = "n_averaged"
"""A counter among the tensors of torch's AveragedModel."""
SAFE_TYPES = (argparse.Namespace, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)))
"""Classes of values that checkpoints hold next to their tensors and that only hold values themselves."""


class OtherHead(ValueError):
    """The weights fit but for the size of the last layer."""


def load_weights(model: nn.Module, path: str | Path, *, new_head: bool = False) -> None:
    """Load weights from a file into `model`; every name and shape has to agree.

    Args:
        model: a float network.
        path: a `.safetensors` file, or a torch pickle, from which only tensors are read (`weights_only=True`). The
            tensors may be under any key, e.g. "model", "state_dict" or "model_state_dict"; of several states the one
            is named behind the file, "checkpoint.pt:model_ema". Their names may begin with "module.", "model." or
            "_orig_mod.".
        new_head: True loads everything except the last layer, which keeps its weights, whatever the file holds for it.

    Raises:
        FileNotFoundError: there is no such file.
        OtherHead: the last layer has another size, and all else fits.
        ValueError: the file is damaged, or its names or shapes are not those of the model.
    """
    path, key = _parts(Path(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected float weights (.th, .pt or .safetensors)")
    names = model.state_dict().keys()
    states = {k: _plain(state, names) for k, state in _states(path).items()}
    load_state(model, _chosen(path, key, states, names), str(path), new_head=new_head)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, *, new_head: bool = False) -> None:
    """Load a state_dict into `model`; every name and shape has to agree.

    Args:
        model: a float network.
        state: tensors by name.
        source: where they are from, for the message.
        new_head: as in `load_weights`.

    Raises:
        OtherHead: the last layer has another size, and all else fits.
        ValueError: names or shapes are not those of the model.
    """
    head_state: dict[str, Tensor] = {}
    if new_head:
        head = f"{head_of(model)}."
        state = {n: t for n, t in state.items() if not n.startswith(head)}
        head_state = {n: t for n, t in model.state_dict().items() if n.startswith(head)}
    state = {**state, **head_state}
    try:
        model.load_state_dict(versioned(model, state))
    except RuntimeError as error:
        raise _unfit(model, state, source, error) from error


def _parts(path: Path) -> tuple[Path, str | None]:
    """Return the file and the key of "FILE:KEY"."""
    name, colon, key = path.name.rpartition(":")
    return (path, None) if not colon or path.exists() else (path.with_name(name), key)


def _states(path: Path) -> dict[str, Mapping[str, Tensor]]:
    """Return the states in a file by their keys; by "" if the file is one itself."""
    content = _content(path)
    if _is_state(content):
        return {"": content}
    entries = content if isinstance(content, Mapping) else {}
    states = {str(key): value for key, value in entries.items() if _is_state(value)}
    if not states:
        holds = some_of([str(key) for key in entries], 8) or type(content).__name__
        raise ValueError(f"{path} holds {holds}; expected tensors by name, a state_dict, as such or under a key")
    return states


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(x, Tensor) for x in value.values())


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([*SAFE_TYPES, *_numpy_scalar()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        holds = re.search(r"GLOBAL (\S+)", str(error))
        if holds is None:
            raise ValueError(f"{path} is no readable weight file: damaged, or a pickle that is not torch's") from error
        raise ValueError(
            f"{path} is no readable weight file: it holds an object of {holds[1]}, which only code can make, and none "
            "is run here. Where you trust the file, write its tensors alone: torch.save(torch.load(FILE, "
            "weights_only=False).state_dict(), 'weights.pt') of a whole network, or the state_dict that is in it"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is no readable weight file but TorchScript; write its tensors alone: "
                "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
            ) from error
        raise ValueError(f"{path} is no readable weight file ({error}); fetch or write it anew") from error


def _numpy_scalar() -> list[Any]:
    """Return what makes numpy's numbers, such as a best accuracy, by the names of numpy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]


def _plain(state: Mapping[str, Tensor], names: Sequence[str] | Any) -> dict[str, Tensor]:
    """Return a state without the prefixes that the model's `names` do not have."""
    plain = {n: t for n, t in state.items() if n != AVERAGES or n in names}
    if not any(COMPILED in name for name in names):
        plain = {n.replace(COMPILED, ""): t for n, t in plain.items()}
    while plain:
        prefix = next((p for p in PREFIXES if all(n.startswith(p) for n in plain)), None)
        if prefix is None or any(n.startswith(prefix) for n in names):
            break
        plain = {n.removeprefix(prefix): t for n, t in plain.items()}
    return plain


def _chosen(path: Path, key: str | None, states: Mapping[str, dict[str, Tensor]], names: Any) -> dict[str, Tensor]:
    """Return the state under `key`; without one the only state, or the only one with names of the model."""
    if key is not None:
        if key not in states:
            keys = some_of([k or "tensors themselves, under no key" for k in states], 8)
            raise ValueError(f"{path} has no state under the key {key!r}; it has {keys}")
        return states[key]
    alike = [k for k, state in states.items() if state.keys() & names] if len(states) > 1 else list(states)
    if len(alike) != 1:
        names_of_states = some_of([f"{path}:{k}" for k in alike or states], 8, " or ")
        raise ValueError(f"{path} holds several states; expected one of them, {names_of_states}")
    return states[alike[0]]


def _unfit(model: nn.Module, state: Mapping[str, Tensor], source: str, error: RuntimeError) -> ValueError:
    """Return the error for a state that the model does not take."""
    needed = model.state_dict()
    missing, extra = [n for n in needed if n not in state], [n for n in state if n not in needed]
    other = [n for n in needed if n in state and state[n].shape != needed[n].shape]
    sizes = some_of([f"{n}: {_size(state[n])} in the file, {_size(needed[n])} in the network" for n in other], 3, "; ")
    faults = [f"size mismatch for {sizes}"] if other else []
    faults += [f"it lacks {some_of(missing)}"] if missing else []
    faults += [f"it has {some_of(extra)}, which the network has not"] if extra else []
    text = f"{source} does not fit {type(model).__name__}: {'; '.join(faults) or error}"
    layers = {n.rpartition(".")[0] for n in other}
    if missing or extra or len(layers) != 1 or "" in layers or layers != {head_of(model)}:
        return ValueError(text)
    file, network = (tensors[other[0]].shape[0] for tensors in (state, needed))
    return OtherHead(
        f"{text}. The last layer of the file has {file} classes, the network's {network} classes (new_head=True loads "
        "all but that layer)"
    )


def _size(tensor: Tensor) -> str:
    return str(list(tensor.shape))
