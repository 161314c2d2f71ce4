"""The inputs that an export is verified with, in every form in which they come."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spequant.calibration.batches import check_batches
from spequant.deploy.loaded import Preprocessing
from spequant.deploy.parity import ParityBatch

ImageBatches = Iterable[Tensor | tuple[Tensor, Tensor]]
"""Batches of inputs, or of (inputs, labels)."""
Inputs = Iterable[Tensor | tuple[Tensor, Tensor] | Mapping[str, Tensor]]
"""The same, or of inputs by name."""


def with_example(images: Inputs, preprocessing: Preprocessing | None) -> tuple[Any, Iterable[ParityBatch]]:
    """(one input of the network, `as_batches` of all images). ValueError: there are none, or they are no batches."""
    check_batches(images, "images")
    batches = as_batches(images, preprocessing)
    try:
        first = next(batches)
    except StopIteration:
        raise ValueError("images hold no sample; expected at least one to verify the export with") from None
    one = {name: x[:1] for name, x in first[0].items()} if isinstance(first[0], Mapping) else first[0][:1]
    return one, chain([first], batches)


def checked_preprocessing(preprocessing: Any) -> Preprocessing:
    """`preprocessing` as two tuples of floats. ValueError: other than (mean, std), one finite number per channel each,
    std above 0."""
    try:
        mean, std = (tuple(torch.as_tensor(values, dtype=torch.float64).flatten().tolist()) for values in preprocessing)
        finite = all(math.isfinite(v) for v in (*mean, *std))
    except (TypeError, ValueError, RuntimeError):
        mean, std, finite = (), (), False
    if not mean or len(mean) != len(std) or not finite or min(std) <= 0:
        raise ValueError(
            f"preprocessing is {preprocessing!r}; expected (mean, std), one number per channel each, std above 0, e.g. "
            "((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))"
        )
    return mean, std


def as_batches(images: Inputs, preprocessing: Preprocessing | None = None) -> Iterator[ParityBatch]:
    """What `compare_answers` takes: inputs of the network, inputs of the graph, labels or None.

    A batch is a tensor or array, (inputs,), (inputs, labels, ...) or inputs by name; one without a sample is left out.
    """
    for item in images:
        if isinstance(item, Mapping):
            if preprocessing is not None:
                raise ValueError("preprocessing is given, but inputs have names; expected images only")
            named = {str(name): _tensor(x, f"images[{name!r}]") for name, x in item.items()}
            if all(len(x) for x in named.values()):
                yield named, {name: x.cpu().numpy() for name, x in named.items()}, None
            continue
        parts = list(item) if isinstance(item, tuple | list) else [item]
        x = _tensor(parts[0] if parts else None, "images")
        labels = _labels(parts[1], len(x)) if len(parts) > 1 else None
        if not len(x):
            continue
        if preprocessing is None:
            x = x if x.dtype in (torch.int32, torch.int64) else x.float()  # tokens stay what they are
            yield x, x.cpu().numpy(), labels
            continue
        if x.dtype != torch.uint8:
            raise ValueError(f"images are {x.dtype}; with preprocessing in the graph expected uint8")
        if x.dim() != 4:
            raise ValueError(
                f"images have {x.dim()} dimensions; with preprocessing in the graph expected 4, "
                "(batch, channels, height, width)"
            )
        if len(preprocessing[0]) not in (1, x.shape[1]):
            raise ValueError(
                f"preprocessing has {len(preprocessing[0])} channels; expected {x.shape[1]}, those of the images"
            )
        mean, std = (torch.tensor(v, dtype=torch.float32, device=x.device).view(-1, 1, 1) for v in preprocessing)
        yield (x.float() / 255 - mean) / std, x.cpu().numpy(), labels


def _tensor(value: Any, argument: str) -> Tensor:
    """`value` as a tensor without a graph."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor) or not value.dim():
        raise ValueError(
            f"{argument} holds {type(value).__name__}; expected tensors or arrays with one sample per row, as they "
            "are, as (inputs, labels) or by name"
        )
    return value.detach()


def _labels(value: Any, count: int) -> Tensor | None:
    """Classes, one per sample; what else comes with inputs (targets of a regression, masks) is not compared with."""
    labels = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.shape == (count,)
    return labels.long() if whole else None
