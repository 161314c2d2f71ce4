"""`export_onnx`: a network to a verified integer ONNX file, in one call."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spequant.calibration.batches import check_batches
from spequant.deploy import engines
from spequant.deploy.autocast import without_autocast
from spequant.deploy.lower import lower
from spequant.deploy.onnx_file import Preprocessing, write_onnx
from spequant.deploy.onnx_integer import integer_graph
from spequant.deploy.parity import Batch, Parity, compare
from spequant.files import placed
from spequant.processes import innermost

Images = Iterable[Tensor | tuple[Tensor, Tensor]]
"""Batches of inputs, or of (inputs, labels)."""
Inputs = Iterable[Tensor | tuple[Tensor, Tensor] | Mapping[str, Tensor]]
"""The same, or of inputs by name."""


@without_autocast
def export_onnx(
    model: nn.Module,
    path: str | Path,
    images: Images,
    *,
    preprocessing: Preprocessing | None = None,
    about: Mapping[str, Any] | None = None,
    check: Callable[[Parity], None] = lambda parity: None,
) -> Parity:
    """Write the prepared and calibrated `model` as integer ONNX, and hold onnxruntime's answers against its own.

    images: real inputs, at least one batch; uint8 images where preprocessing is given, else what the network takes.
    preprocessing: (mean, std) a channel, of images scaled to [0, 1], to be part of the graph.
    about: JSON to keep in the file. check: is shown the comparison before it is judged.

    ValueError: no integer form (`lower`), or other answers (`Parity.check`); then no file is left. RuntimeError: not
    calibrated. ModuleNotFoundError: the extra `deploy` is not installed.
    """
    model = innermost(model)
    one, batches = with_example(images, preprocessing)
    if isinstance(one, Mapping):
        raise ValueError("images have names; an integer graph has one input: give it alone, or use export_mixed")
    program = lower(model, one)
    graph = integer_graph(program, preprocessing=preprocessing, about=about)
    with placed(Path(path)) as temporary:
        write_onnx(graph, temporary)
        run = engines.onnxruntime(temporary)
        parity = compare(model, program, run, batches, engines.onnxruntime, preprocessing)
        check(parity)
        parity.check("onnxruntime")
    return parity


def with_example(images: Inputs, preprocessing: Preprocessing | None) -> tuple[Any, Iterable[Batch]]:
    """(one input of the network, `as_batches` of all images). ValueError: there are none, or they are no batches."""
    check_batches(images, "images")
    batches = as_batches(images, preprocessing)
    try:
        first = next(batches)
    except StopIteration:
        raise ValueError("images hold no sample; expected at least one to verify the export with") from None
    one = {name: x[:1] for name, x in first[0].items()} if isinstance(first[0], Mapping) else first[0][:1]
    return one, chain([first], batches)


def as_batches(images: Inputs, preprocessing: Preprocessing | None = None) -> Iterator[Batch]:
    """What `compare` takes: inputs of the network, inputs of the graph, labels or None.

    A batch is a tensor or array, (inputs,), (inputs, labels, ...) or inputs by name; one without a sample is left out.
    """
    for item in images:
        if isinstance(item, Mapping):
            if preprocessing is not None:
                raise ValueError("preprocessing is given, but inputs have names; expected images alone")
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
        mean, std = (torch.tensor(v, dtype=torch.float32, device=x.device).view(-1, 1, 1) for v in preprocessing)
        yield (x.float() / 255 - mean) / std, x.cpu().numpy(), labels


def _tensor(given: Any, argument: str) -> Tensor:
    """`given` as a tensor without a graph."""
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given)
    if not isinstance(given, Tensor) or not given.dim():
        raise ValueError(
            f"{argument} holds {type(given).__name__}; expected tensors or arrays with a sample a row, alone, as "
            "(inputs, labels) or by name"
        )
    return given.detach()


def _labels(given: Any, count: int) -> Tensor | None:
    """Classes, one a sample; what else stands beside inputs (targets of a regression, masks) is not compared with."""
    labels = torch.from_numpy(given) if isinstance(given, np.ndarray) else given
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.shape == (count,)
    return labels.long() if whole else None
