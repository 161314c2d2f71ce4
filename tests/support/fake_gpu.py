"""A GPU that is not there: tensors on "cuda" without values, and a list of what would make the processor wait."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
VALUES = {torch.bool: True, torch.int64: 1}
"""what reading one value of the GPU gives here, by dtype; of others 1.0"""


@dataclass
class Waits(TorchDispatchMode):
    """While it is entered, notes operations that wait for the GPU, or that mix its tensors with the processor's.

    Attributes:
        places: "file operation", where the library calls such an operation; without repetition.
        count: Number of such operations.
    """

    places: list[str] = field(default_factory=list)
    count: int = 0

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_gpu = any(t.device.type == "cuda" for t in tensors)
        if name in ("_local_scalar_dense", "is_nonzero") and on_gpu:
            self._note(name)
            return VALUES.get(tensors[0].dtype, 1.0)
        if name == "equal" and on_gpu:
            self._note(name)
            return True
        if name in ("_to_copy", "copy_"):
            target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else tensors[0].device
            kinds = {target.type, tensors[-1].device.type}
            waited_for = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] and args[2]))
            if kinds == {"cpu", "cuda"} and waited_for:
                self._note(f"{name} {tensors[-1].device.type} -> {target.type}")
        elif on_gpu and any(t.device.type == "cpu" for t in tensors):
            self._note(f"{name} with a tensor on the CPU")
        elif on_gpu and torch.Tag.dynamic_output_shape in func.tags:
            self._note(name)
        return func(*args, **kwargs)

    def forget(self) -> None:
        """Begin anew."""
        self.places.clear()
        self.count = 0

    def _note(self, what: str) -> None:
        self.count += 1
        frames = [f for f in traceback.extract_stack() if "/src/spequant/" in f.filename]
        place = "outside" if not frames else f"{frames[-1].filename.split('/src/spequant/')[1]}"
        if (line := f"{place} {what}") not in self.places:
            self.places.append(line)


@contextmanager
def fake_gpu() -> Iterator[Waits]:
    """Inside, tensors have no values; yields the list of operations that wait."""
    waits = Waits()
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        yield waits


def moved(thing: Any) -> Any:
    """A network, or tensors in lists and mappings, on the GPU."""
    if isinstance(thing, nn.Module):
        tensors = [*thing.parameters(), *thing.buffers()]
        return thing if tensors and tensors[0].device.type == "cuda" else thing.to(CUDA)
    return tree_map(lambda t: t.to(CUDA) if isinstance(t, Tensor) else t, thing)


def move_networks(thing: Any, seen: set[int] | None = None) -> None:
    """Move all networks that an object holds, also inside of its parts, lists and mappings."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type):
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        moved(thing)
        return
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else ()
    for part in (*parts, *getattr(thing, "__dict__", {}).values()):
        if hasattr(part, "__dict__") or isinstance(part, dict | list | tuple):
            move_networks(part, seen)
