"""What tells recipes apart: the fields in which they differ, without those that follow from another field."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.serial import ELSEWHERE, content_of, flat

ABSENT = object()
"""In place of a field that a recipe does not have."""


def distinctions(recipes: Sequence[Recipe], besides: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return the fields in which recipes differ, apart from their names and where they run.

    The options of a part that is chosen by name (a method's, a quantizer's) are compared between recipes with the same
    choice: that others lack them follows from the choice.

    Args:
        recipes: What is compared.
        besides: Fields that are left out, e.g. "train.seed".

    Returns:
        {"quant.weight_bits": 3, "method": "speq", ...} for each recipe, with the same fields unless choices differ.
    """
    left_out = {"name", "format", *ELSEWHERE, *besides}
    contents = [{k: v for k, v in flat(content_of(recipe)) if k not in left_out} for recipe in recipes]
    fields = dict.fromkeys(field for content in contents for field in content)
    values: dict[Any, set[Any]] = {}
    for content in contents:
        for field in fields:
            values.setdefault((field, _choices(field, content)), set()).add(_comparable(content.get(field, ABSENT)))
    return [
        {_option(k): v for k, v in content.items() if len(values[k, _choices(k, content)]) > 1} for content in contents
    ]


def changes_in_words(fields: Mapping[str, Any]) -> str:
    """Return "quant.weight_bits=3 method=speq"."""
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _choices(field: str, content: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what is chosen in the parts around `field`."""
    parts = field.removesuffix(".name").split(".")
    around = (".".join(parts[:i]) for i in range(1, len(parts)))
    return tuple(content.get(f"{part}.name") for part in around if part != "network")  # whose name is a plain field


def _option(field: str) -> str:
    """Return a field as the command line names it: --method NAME, but --network.name NAME."""
    return field if field == "network.name" else field.removesuffix(".name")


def _comparable(value: Any) -> Any:
    """Return `value` in a form that can be in a set; paths are equal if they lead to the same place."""
    return value.resolve() if isinstance(value, Path) else value if value is ABSENT else repr(value)
