"""Batches of any form: how a model is called with one, and how many samples it holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

IMAGE_CHANNELS = (1, 3, 4)
"""Numbers of channels by which a tensor of three dimensions is recognised as an image."""


def check_batches(batches: Any, name: str) -> None:
    """Refuse a single batch, or a set of samples, where an iterable of batches is expected.

    Args:
        batches: What the caller of the library passed.
        name: The name of that argument, for the message.

    Raises:
        ValueError: `batches` is a tensor, a `Dataset` or a mapping.
    """
    if isinstance(batches, Tensor | Dataset | Mapping):
        raise ValueError(
            f"{name} is a {type(batches).__name__}; expected an iterable of batches, e.g. [x] or a DataLoader"
        )


def run_model(model: nn.Module, batch: Any) -> Any:
    """Call `model` with the input of `batch` and return its output.

    Args:
        model: Any network.
        batch: A tensor; a tuple or list whose first element is the input; or a mapping of keyword arguments.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the train or eval mode of each module at the end, also where it differs from the mode of `model`."""
    before = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


def answer(model: nn.Module, batch: Any) -> Any:
    """Return what `model` gives for the input of `batch` in eval mode, without gradient; both stay as they are."""
    with torch.no_grad(), modes_kept(model):
        return run_model(model.eval(), cloned(batch))


def cloned(example: Any) -> Any:
    """Return a copy of `example`, a tensor or a mapping of tensors, for a network that may write to its input."""
    if isinstance(example, Mapping):
        return {name: cloned(x) for name, x in example.items()}
    return example.clone() if isinstance(example, Tensor) else example


def samples_in(batch: Any, *, inputs_first: bool = True) -> int | None:
    """Return how many samples `batch` holds, or None if it holds no tensor.

    That is the number of rows of its first tensor that has a dimension, or the length of its first list of samples.
    Tensors in a list are samples if they are images, (1, 3 or 4, height, width), or differ in length.

    Args:
        batch: A tensor, a mapping, a tuple or a list, nested in any way.
        inputs_first: True: a tuple or list is (inputs, ...), as `run_model` reads it. False: it may also be a list of
            samples itself.
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    if isinstance(batch, Mapping):
        return _first_count(batch.values())
    if not isinstance(batch, tuple | list):
        return None
    if not batch:
        return 0
    if not inputs_first and (_are_samples(batch) or all(isinstance(sample, Mapping) for sample in batch)):
        return len(batch)
    return _first_count(batch)


def _first_count(parts: Any) -> int | None:
    """Count the samples in the first part that holds a tensor."""
    for part in parts:
        count = len(part) if isinstance(part, tuple | list) and part and _are_samples(part) else samples_in(part)
        if count is not None:
            return count
    return None


def _are_samples(parts: Any) -> bool:
    """Tell whether the tensors in a list are single samples, rather than inputs that hold one sample per row."""
    if not all(isinstance(x, Tensor) and x.dim() for x in parts):
        return False
    images = all(x.dim() == 3 and x.is_floating_point() and len(x) in IMAGE_CHANNELS for x in parts)
    return images or (len({x.dim() for x in parts}) == 1 and len({len(x) for x in parts}) > 1)
