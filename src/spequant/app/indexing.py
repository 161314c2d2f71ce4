"""Makes `commands/index.json`, from which help and completion come without torch.

python -m spequant.app.indexing
"""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from spequant.app.commands.explain import field_texts
from spequant.app.commands.index import FILE
from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.choices import CHOICES
from spequant.app.recipes.command_line import about_recipe, choices
from spequant.app.studies.ladder import ladder_recipe
from spequant.app.studies.study import STUDIES
from spequant.deploy import FORMATS
from spequant.deploy.engines import ENGINES


def make_index() -> dict[str, Any]:
    """Return what `index.index` describes."""
    kinds: dict[str, Any] = {}
    return {
        "formats": {name: {"help": form.help, "suffix": form.suffix} for name, form in FORMATS.items()},
        "engines": list(ENGINES),
        "studies": {name: " ".join((study.__doc__ or "").split()) for name, study in STUDIES.items()},
        "choices": choices(),
        "recipes": {name: _entry(make(), about_recipe(name), kinds) for name, make in RECIPES.items()},
        "ladder": _entry(ladder_recipe(), "", kinds),
        "settings": dict(sorted(kinds.items())),
    }


def _entry(recipe: Recipe, about: str, kinds: dict[str, Any]) -> dict[str, Any]:
    return {"about": about, "settings": _values(recipe, kinds)}


def _values(settings: Any, kinds: dict[str, Any]) -> dict[str, Any]:
    """Return the name of a class of settings and its fields that differ from the default; the class joins `kinds`."""
    choice = next((choice for choice in CHOICES if isinstance(settings, choice.base)), None)
    kind = type(settings).__name__ if choice is None else f"{choice.argument} {choice.name_of(settings)}"
    texts = field_texts(type(settings))
    values: dict[str, Any] = {"is": kind}
    kinds[kind] = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        inside = is_dataclass(value)
        default = None if inside else _plain(f.default)
        kinds[kind][f.name] = ["Settings" if inside else _hint(f.type), texts.get(f.name, ""), default]
        if inside or _plain(value) != default:
            values[f.name] = _values(value, kinds) if inside else _plain(value)
    return values


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def _hint(kind: Any) -> str:
    text = kind.__name__ if type(kind) is type else str(kind)
    return text.replace("typing.", "").replace("pathlib.", "")


def in_lines(value: Any, depth: int) -> str:
    """Return `value` as JSON, with a line per entry down to `depth`, so that changes are read and merged by line."""
    if depth == 0 or not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return (
        "{\n" + ",\n".join(f"{json.dumps(key)}: {in_lines(inner, depth - 1)}" for key, inner in value.items()) + "\n}"
    )


if __name__ == "__main__":
    FILE.write_text(in_lines(make_index(), 3) + "\n", encoding="utf-8")
