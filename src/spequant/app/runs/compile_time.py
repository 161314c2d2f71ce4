"""How long compiling took the last time, so that a run can say how long it will take.

~/.cache/spequant/compile.json (or below XDG_CACHE_HOME) is an object of seconds by what is compiled. Nothing depends on
it: where it cannot be read or written, no time is known.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

import torch

from spequant.app.recipes.choices import METHOD
from spequant.app.recipes.recipe import Recipe
from spequant.files import write_json


def last_seconds(recipe: Recipe, device: torch.device) -> float | None:
    """Return the time of the first step of the last such training on this machine; None if it is not known."""
    seconds = _times().get(_key(recipe, device))
    return float(seconds) if isinstance(seconds, int | float) else None


def remember(recipe: Recipe, device: torch.device, seconds: float) -> None:
    """Keep the time of the first step."""
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), {**_times(), _key(recipe, device): round(seconds, 1)})


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spequant" / "compile.json"


def _times() -> dict[str, object]:
    try:
        content = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _key(recipe: Recipe, device: torch.device) -> str:
    quant = recipe.quant
    bits = f"W{quant.weight_bits}A{quant.act_bits}"
    return f"{recipe.network.name} {bits} {METHOD.name_of(recipe.method)} {recipe.train.precision} {device.type}"
