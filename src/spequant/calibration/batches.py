"""Batches of any form: what a model is called with, and how many samples they hold."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

CHANNELS = (1, 3, 4)


def check_batches(batches: Any, name: str) -> None:
    """ValueError: one batch, or a set of samples, where batches are expected."""
    if isinstance(batches, Tensor | Dataset | Mapping):
        raise ValueError(
            f"{name} is a {type(batches).__name__}; expected an iterable of batches, e.g. [x] or a DataLoader"
        )


def run_model(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: a tensor, a tuple or list that begins with the input, or a dict of keywords."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def cloned(example: Any) -> Any:
    """`example`, a tensor or tensors by name, for a network that may write to it."""
    if isinstance(example, Mapping):
        return {name: cloned(x) for name, x in example.items()}
    return example.clone() if isinstance(example, Tensor) else example


def samples_in(batch: Any, *, inputs_first: bool = True) -> int | None:
    """How many samples `batch` holds: rows of its first tensor with a dimension, or the length of a list of samples,
    which are images, (1, 3 or 4, height, width), or tensors of different lengths. None: it holds no tensor.

    inputs_first: a tuple or list is (inputs, ...), as `run_model` takes it; else it may be a list of samples itself.
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    if isinstance(batch, Mapping):
        return _first(batch.values())
    if not isinstance(batch, tuple | list):
        return None
    if not batch:
        return 0
    if not inputs_first and (_samples(batch) or all(isinstance(sample, Mapping) for sample in batch)):
        return len(batch)
    return _first(batch)


def _first(parts: Any) -> int | None:
    """Of the first part that holds a tensor."""
    for part in parts:
        found = len(part) if isinstance(part, tuple | list) and part and _samples(part) else samples_in(part)
        if found is not None:
            return found
    return None


def _samples(parts: Any) -> bool:
    """Whether a list of tensors is one of samples, rather than of inputs with a sample a row."""
    if not all(isinstance(x, Tensor) and x.dim() for x in parts):
        return False
    images = all(x.dim() == 3 and x.is_floating_point() and len(x) in CHANNELS for x in parts)
    return images or (len({x.dim() for x in parts}) == 1 and len({len(x) for x in parts}) > 1)
