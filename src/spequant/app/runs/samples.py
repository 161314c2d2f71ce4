"""Samples out of an .npz: what takes the place of a recipe's test set, for files that were made in Python."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spequant.deploy import Loaded

INPUTS, LABELS = "inputs", "labels"
EXPECTED = (
    "inputs, (samples, ...), or instead of it the network's inputs by their names, e.g. input_ids and attention_mask; "
    "and where answers are measured, labels"
)


@dataclass(frozen=True)
class Samples:
    """Inputs as the file takes them, (n, ...), one tensor or several by name; and labels, if there are any.

    Labels are classes, int64 (n,), or values, float32 (n,) or (n, targets).
    """

    images: Tensor | dict[str, Tensor]
    labels: Tensor | None
    path: Path | None = None
    """where they are from"""

    def __len__(self) -> int:
        return len(next(iter(self.images.values())) if isinstance(self.images, dict) else self.images)

    @property
    def named(self) -> bool:
        """Whether the inputs have names."""
        return isinstance(self.images, dict)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one input; None where they have names."""
        return None if isinstance(self.images, dict) else tuple(self.images.shape[1:])

    def part(self, indices: slice) -> "Samples":
        if isinstance(self.images, dict):
            inputs: Any = {name: x[indices] for name, x in self.images.items()}
        else:
            inputs = self.images[indices]
        return Samples(inputs, None if self.labels is None else self.labels[indices], self.path)

    def normalise(self, images: Any) -> Any:
        """Return inputs as fp32, except for int32 and int64, which are tokens and stay as they are."""
        if isinstance(images, dict):
            return {name: self.normalise(x) for name, x in images.items()}
        return images if images.dtype in (torch.int32, torch.int64) else images.float()

    def check_names(self, loaded: Loaded) -> None:
        """Check that the inputs are those of a file, or of its network.

        Raises:
            ValueError: they are not; the message has the names of both.
        """
        takes, needed, more = _inputs_of(loaded)
        names = set(self.images) if isinstance(self.images, dict) else {INPUTS}
        fits = (names & takes if more else names <= takes) and set(needed) <= names
        if (fits if self.named else len(needed) <= 1) or not takes:
            return
        single = len(needed) == 1
        expected = f"{INPUTS} and {LABELS}" if single else f"arrays of these names, and {LABELS}"
        raise ValueError(
            f"{self.path} holds {', '.join(sorted(names))}; {loaded.path} takes {', '.join(needed or sorted(takes))}: "
            f"expected {expected}"
        )


def _inputs_of(loaded: Loaded) -> tuple[set[str], list[str], bool]:
    """(names of the inputs that are known; those that have to be there; whether there may be others)"""
    if loaded.engines or loaded.model is None:
        return set(loaded.inputs), list(loaded.inputs), False
    parameters = inspect.signature(loaded.model.forward).parameters.values()
    plain = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    more = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return {p.name for p in plain}, [p.name for p in plain if p.default is p.empty], more


def read_samples(path: Path) -> Samples:
    """Read an .npz with the array "inputs", (n, ...), or inputs by other names, (n, ...) each; and perhaps "labels".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npz, holds no inputs, or arrays that do not belong together.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected an .npz with the arrays {EXPECTED}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, AttributeError, EOFError) as error:
        raise ValueError(f"{path} is no .npz that can be read ({error}); write it by numpy.savez") from error
    labels = arrays.pop(LABELS, None)
    if not arrays or (INPUTS in arrays and len(arrays) > 1):
        raise ValueError(f"{path} holds the arrays {', '.join(arrays) or 'none'}; expected {EXPECTED}")
    inputs = {name: _tensor(path, name, array) for name, array in arrays.items()}
    counts = {name: len(x) for name, x in inputs.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{path}: {', '.join(f'{n} has {c} samples' for n, c in counts.items())}; expected as many")
    count = next(iter(counts.values()))
    return Samples(inputs.get(INPUTS, inputs), None if labels is None else _labels(path, labels, count), path)


def _tensor(path: Path, name: str, array: np.ndarray) -> Tensor:
    if not array.ndim or not len(array) or array.dtype.kind not in "fiub":
        raise ValueError(f"{path}: {name} are {array.dtype} of shape {array.shape}; expected numbers, (samples, ...)")
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    mask = array.dtype.kind == "b" and name != INPUTS  # of tokens
    return torch.from_numpy(array.astype(np.int64) if mask else array)


def _labels(path: Path, labels: np.ndarray, count: int) -> Tensor:
    whole, values = labels.dtype.kind in "iu" and labels.ndim == 1, labels.dtype.kind == "f" and labels.ndim in (1, 2)
    if labels.shape[:1] != (count,) or not (whole or values):
        raise ValueError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}; expected whole numbers of shape ({count},), "
            f"one per input, or values of a regression, ({count},) or ({count}, targets)"
        )
    return torch.from_numpy(labels.astype(np.int64 if whole else np.float32))
