"""Recipes as JSON, and the differences between two recipes.

Format 2 is an object with `format` and the parts of a recipe. A part that is chosen by name has `name` and its options.
Format 1, of older versions, is read as well (`format1.py`).
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from spequant.app.recipes import format1
from spequant.app.recipes.choices import CHOICES, Choice
from spequant.app.recipes.recipe import Recipe

FORMAT = 2
ELSEWHERE = (
    "data.root",
    "data.download",
    "data.workers",
    "train.measure_every",
    "train.device",
    "train.threads",
    "train.checkpoint_every",
    "train.layers_every",
    "train.tracker",
)
"""Fields that say where and how a run is carried out. A resumed run may change them."""


def to_json(recipe: Recipe) -> str:
    """Return the recipe with all its fields, for `from_json`."""
    return json.dumps(content_of(recipe), indent=2, default=str)


def content_of(recipe: Recipe) -> dict[str, Any]:
    """Return what `to_json` writes, as nested dictionaries in which paths are still paths."""
    return {"format": FORMAT, **_content(recipe)}


def _content(settings: Any) -> dict[str, Any]:
    kinds = typing.get_type_hints(type(settings))
    parts: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, choice = getattr(settings, field.name), _choice(kinds[field.name])
        if dataclasses.is_dataclass(value):
            name = {} if choice is None else {"name": choice.name_of(value)}
            parts[field.name] = {**name, **_content(value)}
        else:
            parts[field.name] = value
    return parts


def _choice(kind: Any) -> Choice[Any] | None:
    """Return the choice of a part that is chosen by name, or None for other fields."""
    return next((choice for choice in CHOICES if choice.base is kind), None)


def from_json(text: str) -> Recipe:
    """Return the recipe that `to_json` of this or an older version wrote.

    Raises:
        ValueError: the text is no recipe, or of a newer format; a field is unknown, or its value is not allowed.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"recipe is no JSON ({error}); expected what spequant wrote to recipe.json") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe is {values!r}; expected an object with the fields of a recipe")
    version = values.pop("format", 1)
    if version == 1:
        values = format1.upgraded(values)
    elif version != FORMAT:
        raise ValueError(f"recipe has format {version!r}; this version reads 1 and {FORMAT}: install a newer one")
    return _read(Recipe, values, "recipe")


def _read(kind: Any, value: Any, where: str) -> Any:
    choice = _choice(kind)
    if choice is not None:
        return _read_choice(choice, value, where)
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}; expected a list")
        return tuple(_read(typing.get_args(kind)[0], item, where) for item in value)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        if value is None and len(kinds) < len(typing.get_args(kind)):
            return None
        texts = [k for k in kinds if typing.get_origin(k) is Literal and isinstance(value, str)]
        return _read((texts or kinds)[0], value, where)  # of true, false or "auto", only the last is a text
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{where} is {value!r}; expected one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    accepted = {Path: str, float: (int, float)}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r}; expected {kind.__name__}")
    return Path(str(value)) if kind is Path else value


def _read_choice(choice: Choice[Any], value: Any, where: str) -> Any:
    """Read a part that is chosen by name: {"name": ..., options}, or only its name."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError(f"{where} is {value!r}; expected an object with a name")
    options = {key: v for key, v in value.items() if key != "name"}
    try:
        kind = choice.named(value["name"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return _read_fields(kind, options, where)


def _read_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}; expected an object with the fields of {kind.__name__}")
    hints = {
        field.name: hint for field in dataclasses.fields(kind) for hint in [typing.get_type_hints(kind)[field.name]]
    }
    unknown = set(value) - set(hints)
    if unknown:
        raise ValueError(f"{where} has the fields {sorted(unknown)}, unknown here; expected {sorted(hints)}")
    fields = {key: _read(hints[key], v, f"{where}.{key}") for key, v in value.items()}
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def without_paths(settings: Any) -> Any:
    """Return the settings with None in place of each path, since paths are those of one machine."""
    changes = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            changes[field.name] = None
        elif dataclasses.is_dataclass(value):
            changes[field.name] = without_paths(value)
    return dataclasses.replace(settings, **changes)


def differences(actual: Recipe, expected: Recipe) -> list[str]:
    """Return "train.lr is 0.1, expected 0.04" for each field that differs, except those of `ELSEWHERE`.

    Paths are equal if they lead to the same place.
    """
    ours, theirs = ({k: _shown(v) for k, v in flat(content_of(recipe))} for recipe in (actual, expected))
    pairs = {name: (ours.get(name, "absent"), theirs.get(name, "absent")) for name in {**ours, **theirs}}
    return [f"{name} is {a}, expected {b}" for name, (a, b) in pairs.items() if name not in ELSEWHERE and a != b]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("train.lr", 0.04) and so on for all fields of nested dictionaries."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Any) -> str:
    return repr(value.resolve() if isinstance(value, Path) else value)
