"""Recipes as JSON, and what two of them differ in.

Format 2: an object with `format` and the parts of a recipe; of a part that is chosen by name, `name` and its options.
Format 1, of the versions before, is read as well (`format1.py`).
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
"""Fields that say where and how a run is carried out; a resumed run may change them."""


def to_json(recipe: Recipe) -> str:
    """The recipe with all its fields. `from_json` reads it."""
    return json.dumps(content_of(recipe), indent=2, default=str)


def content_of(recipe: Recipe) -> dict[str, Any]:
    """The same as nested dictionaries; paths are still paths."""
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
    """Of a part that is chosen by name; None: of any other."""
    return next((choice for choice in CHOICES if choice.base is kind), None)


def from_json(text: str) -> Recipe:
    """The recipe that `to_json` wrote, of this version or one before. ValueError names a field that is unknown, or
    whose value cannot be."""
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
        return None if value is None else _read(kinds[0], value, where)
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{where} is {value!r}; expected one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    accepted = {Path: str, float: (int, float)}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r}; expected {kind.__name__}")
    return Path(str(value)) if kind is Path else value


def _read_choice(choice: Choice[Any], value: Any, where: str) -> Any:
    """A part that is chosen by name: {"name": ..., options}, or its name alone."""
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
    """The same settings with None for each path of this machine."""
    changes = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            changes[field.name] = None
        elif dataclasses.is_dataclass(value):
            changes[field.name] = without_paths(value)
    return dataclasses.replace(settings, **changes)


def differences(found: Recipe, expected: Recipe) -> list[str]:
    """ "train.lr is 0.1, expected 0.04" for each field in which two recipes differ, `ELSEWHERE` aside. Paths are where
    they lead."""
    ours, theirs = dict(flat(content_of(found))), dict(flat(content_of(expected)))
    names = [name for name in {**ours, **theirs} if name not in ELSEWHERE]
    lines = []
    for name in names:
        a, b = ours.get(name, MISSING), theirs.get(name, MISSING)
        if _end(a) != _end(b):
            lines.append(f"{name} is {a!r}, expected {b!r}")
    return lines


class _Missing:
    """Of a field that a recipe does not have, its method or data being another."""

    def __repr__(self) -> str:
        return "absent"


MISSING = _Missing()


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("train.lr", 0.04) for each field of nested dictionaries."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _end(value: Any) -> Any:
    return value.resolve() if isinstance(value, Path) else value
