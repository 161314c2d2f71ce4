"""What runs and exported files say of their images: classes by name, shape, and how an image file becomes an input."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spequant.app.runs.folder import FACTS
from spequant.data import Configuration, ImageSet, configuration_from
from spequant.deploy.classes import CLASS_NAMES, names_in
from spequant.files import write_whole

IMAGES = "images"
"""Entry of a file's `about`: a `Configuration`, as `dataclasses.asdict` gives it."""


def facts_of(data: ImageSet) -> dict[str, Any]:
    """Return what is said of a set, as JSON: `classes`, `shape` and, if they are known, `class_names` and `images`."""
    facts: dict[str, Any] = {"classes": data.classes, "shape": list(data.images.shape[1:])}
    if data.names is not None:
        facts[CLASS_NAMES] = list(data.names)
    if data.configuration is not None:
        settings = asdict(data.configuration).items()
        facts[IMAGES] = {name: list(value) if isinstance(value, tuple) else value for name, value in settings}
    return facts


def keep_facts(data: ImageSet, folder: Path) -> None:
    """Write the facts to a run's folder."""
    write_whole(folder / FACTS, json.dumps(facts_of(data), indent=2))


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return the facts in a run's folder; None: it has none, as runs on questions and those of older versions.

    Raises:
        ValueError: they are damaged.
    """
    path = folder / FACTS
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text())
        shape_of(facts)
        if CLASS_NAMES in facts and len(names_in(facts) or ()) != facts["classes"]:
            raise ValueError(f"{CLASS_NAMES} are not {facts['classes']} names")
        configuration_of(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); remove it: what it says is then read from the data"
        ) from error
    return facts


def shape_of(about: Mapping[str, Any]) -> tuple[int, ...]:
    """Return (channels, height, width). Raise KeyError or ValueError: it is not said, or no such shape."""
    shape, classes = about["shape"], about["classes"]
    if len(shape) != 3 or not all(type(n) is int and 0 < n < 2**16 for n in (*shape, classes)):
        raise ValueError(f"it has {classes!r} classes and inputs of shape {shape!r}")
    return tuple(shape)


def configuration_of(about: Mapping[str, Any]) -> Configuration | None:
    """Return how image files become inputs; None: it is not said. Raise ValueError: what is said makes no sense."""
    return configuration_from(about[IMAGES]) if IMAGES in about else None
