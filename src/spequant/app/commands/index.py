"""What the library holds by name, for help and completion without torch.

`python -m spequant.app.indexing` makes `index.json`, and a test compares it with the library.
"""

import json
import typing
from functools import cache
from pathlib import Path
from typing import Any

from spequant.app.commands.explain import SettingRow

FILE = Path(__file__).with_name("index.json")


@cache
def index() -> dict[str, Any]:
    """Return the content of `FILE`.

    formats: {name: help, suffix}. engines: names. studies: {name: what it is}. choices: {part of a recipe: names}.
    settings: {class: {field: [type, text, default]}}. recipes: {name: what it is (`about`), and its settings: the name
    of their class (`is`) and the fields that differ from the default}.
    """
    return json.loads(FILE.read_text(encoding="utf-8"))


def rows_of_recipe(entry: dict[str, Any]) -> list[SettingRow]:
    """Return the fields of a recipe in `index`, as `explain.rows` would."""
    return _rows(entry["settings"])


def _rows(values: dict[str, Any]) -> list[SettingRow]:
    fields = index()["settings"][values["is"]]
    hints = typing.get_type_hints(
        type("Fields", (), {"__annotations__": {name: kind for name, (kind, *_) in fields.items()}}),
        {**vars(typing), "Path": Path, "Settings": object},
    )
    return [
        SettingRow(name, hints[name], text, _value(values.get(name, default), hints[name]))
        for name, (_, text, default) in fields.items()
    ]


def _value(value: Any, hint: Any) -> Any:
    if isinstance(value, dict):
        return _rows(value)
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if hint in (Path, Path | None) and value is not None else value


def parts_of_recipe(entry: dict[str, Any]) -> dict[str, str]:
    """Return what a recipe in `index` has chosen: {"method": "speq", "quant.weight": "sawb" ...}."""
    parts = {}
    for part in index()["choices"]:
        settings = entry["settings"]
        for field in part.split("."):
            settings = settings[field]
        parts[part] = settings["is"].partition(" ")[2]
    return parts
