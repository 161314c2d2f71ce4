"""Names of classes: checked against what the network returns, and kept in what a file says of itself, in any format."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spequant.calibration.batch_norm import modes_kept
from spequant.calibration.batches import cloned, run_model

CLASS_NAMES = "class_names"
"""Entry of a file's `about` that holds them."""


def names_in(about: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names in a file's `about`, in the order of its outputs; None: there are none."""
    names = about.get(CLASS_NAMES)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def with_classes(
    about: Mapping[str, Any] | None, classes: Sequence[str] | None, model: nn.Module, example: Any
) -> Mapping[str, Any] | None:
    """`about` with the names of the classes.

    Args:
        about: what is to be kept in a file.
        classes: the names; None: `about` as it is.
        model: the network, which is run once in eval mode.
        example: one input of it.

    Raises:
        ValueError: other than one text per output, or `about` has names already.
    """
    if classes is None:
        return about
    names = [] if isinstance(classes, str | Mapping) else list(classes)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes is {classes!r}; expected a list of texts, in the order of the network's outputs")
    if CLASS_NAMES in (about or {}):
        raise ValueError(f"classes are given, and about has {CLASS_NAMES!r}; expected one of the two")
    outputs = _outputs(model, example)
    if len(names) != outputs:
        raise ValueError(f"classes are {len(names)}; the network has {outputs} outputs: expected a name for each")
    return {**(about or {}), CLASS_NAMES: names}


def _outputs(model: nn.Module, example: Any) -> int:
    """Numbers that the network gives for a sample, a pixel or a token."""
    with torch.no_grad(), modes_kept(model):
        out = run_model(model.eval(), cloned(example))
    if isinstance(out, Mapping):
        out = out.get("logits", next(iter(out.values())) if len(out) == 1 else None)
    if not isinstance(out, Tensor) or out.dim() < 2:
        kind = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"classes are given; the network gives {kind}: expected one tensor, (samples, classes, ...)")
    return out.shape[-1 if isinstance(example, Mapping) else 1]
