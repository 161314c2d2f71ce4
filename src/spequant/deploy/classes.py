"""Names of classes: checked against what the network returns, and kept in what a file says of itself, in any format."""

from collections.abc import Mapping, Sequence
from typing import Any

CLASS_NAMES = "class_names"
"""Entry of a file's `about` that holds them."""


def names_in(about: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names in a file's `about`, in the order of its outputs; None: there are none."""
    names = about.get(CLASS_NAMES)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def with_classes(
    about: Mapping[str, Any] | None, classes: Sequence[str] | None, outputs: int
) -> Mapping[str, Any] | None:
    """`about` with the names of the classes.

    Args:
        about: what is to be kept in a file.
        classes: the names; None: `about` as it is.
        outputs: how many numbers the network gives for a sample.

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
    if len(names) != outputs:
        raise ValueError(f"classes are {len(names)}; the network has {outputs} outputs: expected a name for each")
    return {**(about or {}), CLASS_NAMES: names}
