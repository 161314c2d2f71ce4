"""What networks return: one tensor, or several by name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from spequant.calibration.batches import answer


def outputs_by_name(out: Any, inputs: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors that a network returned: one, "output"; of a mapping, by their keys; of a tuple or list, "output0",
    "output1" ...; of these inside one another, with a dot between. inputs: names that are taken, which get "_output"
    behind.

    ValueError: something else than tensors.
    """
    leaves = dict(_leaves(out, ""))
    if not leaves or not all(isinstance(value, Tensor) for value in leaves.values()):
        kinds = {type(value).__name__ for value in leaves.values() if not isinstance(value, Tensor)} or {"nothing"}
        raise ValueError(
            f"the network gives {', '.join(sorted(kinds))}; expected one tensor, tensors by name, or several in a "
            "tuple: wrap it"
        )
    return {f"{name}_output" if name in inputs else name: value for name, value in leaves.items()}


def _leaves(out: Any, name: str) -> Any:
    if isinstance(out, Mapping):
        for key, value in out.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(out, tuple | list):
        for number, value in enumerate(out):
            yield from _leaves(value, f"{name or 'output'}{'.' if name else ''}{number}")
    else:
        yield name or "output", out


def output_names(out: Any, inputs: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names alone, see `outputs_by_name`."""
    return tuple(outputs_by_name(out, inputs))


def output_count(model: nn.Module, example: Any) -> int:
    """How many numbers the network gives for a sample, a pixel or a token of `example`.

    ValueError: it gives something else than one tensor (samples, classes, ...).
    """
    out = answer(model, example)
    if isinstance(out, Mapping):
        out = out.get("logits", next(iter(out.values())) if len(out) == 1 else None)
    if not isinstance(out, Tensor) or out.dim() < 2:
        kind = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"classes are given; the network gives {kind}: expected one tensor, (samples, classes, ...)")
    return out.shape[-1 if isinstance(example, Mapping) else 1]
