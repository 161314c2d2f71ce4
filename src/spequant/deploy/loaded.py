"""An exported file, opened: what it says of itself, and what runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spequant.calibration.batches import run_model
from spequant.deploy.classes import names_in
from spequant.deploy.engines import ENGINES, Run, run_in_parts
from spequant.deploy.program import Program

Preprocessing = tuple[Sequence[float], Sequence[float]]
"""(mean, std) per channel, of images scaled to [0, 1]."""


@dataclass(frozen=True)
class Loaded:
    """An exported file; call it on inputs, batch first, for its outputs.

    Attributes:
        path: of the file.
        format: name of its format.
        engines: that run the file as it is; the first is the one that a call uses. Empty: it runs in torch.
        about: JSON that its writer said of the network.
        inputs: shape of each input by name, batch first; None: any number. Empty: the file does not say.
        tokens: by name, which inputs are whole numbers, "int64" or "int32".
        outputs: names of its outputs.
        act_bits: widths of its activations, in ascending order. Empty: the file does not say.
        preprocessing: where it takes uint8 images, the (mean, std) that it normalises them with; else None.
        batch: samples that its graph takes at a time; None: any number.
        model: of a packed file, the prepared network in eval mode.
        program: of an integer graph, what it computes.
    """

    path: Path
    format: str
    engines: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("output",)
    act_bits: tuple[int, ...] = ()
    preprocessing: Preprocessing | None = None
    batch: int | None = None
    model: nn.Module | None = None
    program: Program | None = None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the outputs; None: the file does not say."""
        return names_in(self.about)

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """Of one sample, where there is one input and the file says it; else None."""
        return next(iter(self.inputs.values()))[1:] if len(self.inputs) == 1 else None

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Its outputs.

        Args:
            args: the one input, a tensor or an array (batch, ...): what the network takes, or uint8 images where
                `preprocessing` says so; or inputs by name in one mapping.
            named: inputs by name.

        Returns:
            A tensor, or tensors by name where there are several outputs or the inputs have names.

        Raises:
            ValueError: other inputs than the file has; a packed file that was opened without its network.
        """
        if len(args) + bool(named) != 1:
            raise ValueError(f"{len(args)} inputs are given; expected one tensor, or inputs by name")
        x = args[0] if args else named
        return self.of_model(x) if not self.engines else outputs_of(self, self.run, x)

    def of_model(self, x: Any) -> Any:
        """What `model` gives for inputs (batch, ...), or for inputs by name."""
        if self.model is None:
            raise ValueError(f"{self.path} holds weights only; open it with its network: load(path, network=...)")
        with torch.no_grad():
            if isinstance(x, Mapping):
                return run_model(self.model, {name: _tensor(value) for name, value in x.items()})
            return run_model(self.model, _tensor(x))

    @cached_property
    def run(self) -> Run:
        return ENGINES[self.engines[0]](self.path)


def outputs_of(loaded: Loaded, run: Run, x: Any) -> Any:
    """What `run`, an engine's of a graph with the ends of `loaded`, gives for inputs (batch, ...) or by name."""
    names = tuple(loaded.inputs)
    feed = dict(x) if isinstance(x, Mapping) else {names[0]: x}
    if set(feed) != set(names):
        raise ValueError(f"{loaded.path}: inputs are {', '.join(map(str, feed))}; expected {', '.join(names)}")
    arrays = {name: _array(loaded, name, value) for name, value in feed.items()}
    tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in run_in_parts(run, arrays, loaded.batch)]
    if len(tensors) == 1 and not isinstance(x, Mapping):
        return tensors[0]
    return dict(zip(loaded.outputs, tensors, strict=True))


def _tensor(x: Any) -> Tensor:
    """Whole numbers of 32 and 64 bits are tokens, and stay what they are."""
    x = torch.as_tensor(x)
    return x if x.dtype in (torch.int32, torch.int64) else x.float()


def _array(loaded: Loaded, name: str, value: Any) -> np.ndarray:
    x = torch.as_tensor(value).detach().cpu()
    if name in loaded.tokens:
        if x.is_floating_point() or x.is_complex():
            raise ValueError(f"{name} is {x.dtype}; {loaded.path} takes whole numbers, {loaded.tokens[name]}")
        x = x.to(getattr(torch, loaded.tokens[name]))
    elif loaded.preprocessing is None:
        x = _tensor(x)
    elif x.dtype != torch.uint8:
        raise ValueError(f"{name} is {x.dtype}; {loaded.path} takes images of torch.uint8, and normalises them itself")
    shape = loaded.inputs[name]
    sizes = zip(x.shape[1:], shape[1:], strict=False)
    if x.dim() != len(shape) or not len(x) or any(fixed is not None and size != fixed for size, fixed in sizes):
        expected = ", ".join("any" if size is None else str(size) for size in (None, *shape[1:]))
        raise ValueError(f"{name} has the shape {tuple(x.shape)}; {loaded.path} takes ({expected})")
    return x.numpy()
