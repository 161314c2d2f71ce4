"""Trained low-bit networks that come with the library: packed files, each with its card, by the name zoo/NAME.

A card (NAME.json) says what the network is, its accuracy with each seed, and how it was made: by one command,
`python tools/make_zoo.py`, at a commit, in so many hours, on a processor.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from spequant.names import imported, nearest

PREFIX = "zoo/"
"""How a path begins that names one of these networks."""
ZOO_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names, without the prefix, in alphabetical order."""
    return sorted(path.stem for path in ZOO_FOLDER.glob("*.json"))


def of_zoo(path: str | Path) -> bool:
    """Return whether `path` is zoo/NAME, and not a file or folder of that path."""
    return Path(path).as_posix().startswith(PREFIX) and not Path(path).exists()


def card_of(path: str | Path) -> dict[str, Any]:
    """Return the card of zoo/NAME.

    Raises:
        ValueError: There is no such network.
    """
    name = Path(path).as_posix().removeprefix(PREFIX)
    if name not in names():
        raise ValueError(f"{PREFIX}{name} is no network of the zoo; {nearest(name, names())}")
    return json.loads((ZOO_FOLDER / f"{name}.json").read_text())


def file_of(path: str | Path) -> Path:
    """Return the packed file of zoo/NAME; any other path is returned as it is.

    Raises:
        ValueError: There is no such network.
    """
    return ZOO_FOLDER / f"{card_of(path)['name']}.packed" if of_zoo(path) else Path(path)


def network_of(path: str | Path) -> nn.Module:
    """Return the float network of zoo/NAME, with random weights.

    Raises:
        ValueError: There is no such network.
    """
    maker = card_of(path)["network"]
    return imported(maker["call"])(**maker["arguments"])
