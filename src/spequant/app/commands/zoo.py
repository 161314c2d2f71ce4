"""Settings of the command zoo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Zoo:
    """List the trained low-bit networks that come with spequant, or print the card of one.

    zoo/NAME stands for a file in every command that takes one: `spequant evaluate zoo/NAME`, `spequant export zoo/NAME
    --to onnx`, `spequant predict zoo/NAME photo.jpg`.
    """

    name: Annotated[str | None, Positional, arg(metavar="[NAME]")] = None
    """a network, with or without zoo/; none: all are listed"""
    json: Path | None = None
    """a file for the cards as JSON"""
