"""A recipe on a command line: found by name or in a file, its parts chosen and its fields set by options."""

import copy
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from spequant.app.recipes.catalogue import RECIPES
from spequant.app.recipes.choices import DATA, METHOD, OPTIMIZER, QUANTIZER, Choice
from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.serial import content_of, flat, from_json
from spequant.names import called_with, imported, nearest
from spequant.quantizers import LSQPlus

CHOICES_BY_OPTION: dict[str, Choice[Any]] = {
    "data": DATA,
    "method": METHOD,
    "quant.weight": QUANTIZER,
    "quant.act": QUANTIZER,
    "train.optimizer": OPTIMIZER,
}
"""Parts of a recipe that an option of their name chooses: --method qkd."""


def recipe_named(name: str) -> Recipe:
    """The recipe of that name: of the catalogue; of a JSON file (`spequant recipes NAME` prints one); or a recipe, or a
    function that makes one, of your own: package.module:Object or file.py:Object.

    Raises:
        ValueError: there is none, or it is no recipe. FileNotFoundError: there is no such JSON file.
    """
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"{name} does not exist; expected a recipe as `spequant recipes NAME` prints it")
        return from_json(Path(name).read_text())
    if ":" in name:
        thing = imported(name)
        recipe = thing if isinstance(thing, Recipe) or not callable(thing) else called_with(thing, {}, name)
        if not isinstance(recipe, Recipe):
            raise ValueError(f"{name} is {type(recipe).__name__}; expected a Recipe, or a function that returns one")
        return recipe
    if name not in RECIPES:
        raise ValueError(
            f"recipe is {name!r}; {nearest(name, list(RECIPES))} (spequant recipes lists them; file.json and "
            "file.py:function are recipes of your own)"
        )
    return RECIPES[name]()


def about_recipe(name: str) -> str:
    """Return what the recipe of that name is, in one line; "" for a file of JSON, or an object without a docstring."""
    make = RECIPES.get(name) or (imported(name) if ":" in name and not name.endswith(".json") else None)
    return " ".join((getattr(make, "__doc__", "") or "").split()) if callable(make) else ""


def parts_chosen(recipe: Recipe, words: Sequence[str]) -> tuple[Recipe, list[str]]:
    """(`recipe` with the parts that options such as `--method qkd` choose, the other words).

    A part of another kind has its own defaults; data keep the fields that both sets have. The recipe is not checked as
    a whole: further options may be what makes it right.
    """
    left: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        option, equals, value = word.removeprefix("--").partition("=")
        option = option.replace("_", "-")
        if not word.startswith("--") or option not in CHOICES_BY_OPTION:
            left.append(word)
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise ValueError(f"--{option} has no value; expected a name")
            value = words.pop(0)
        recipe = _with_part(recipe, option, value)
    return recipe, _compile_in_words(left)


def _compile_in_words(words: Sequence[str]) -> list[str]:
    """Return `words` with --train.compile and --train.no-compile as tyro reads a field that has a third value."""
    words_left: list[str] = []
    for word, following in pairwise([*words, "--"]):
        words_left.append("--train.compile" if word == "--train.no-compile" else word)
        if word == "--train.no-compile" or (word == "--train.compile" and following.startswith("--")):
            words_left.append(str(word == "--train.compile"))
    return words_left


def _with_part(recipe: Recipe, option: str, name: str) -> Recipe:
    choice, (*above, field) = CHOICES_BY_OPTION[option], option.split(".")
    owner: Any = getattr(recipe, above[0]) if above else recipe
    kind, before = choice.named(name, option), getattr(owner, field)
    if type(before) is kind:
        return recipe
    kept = {f.name: getattr(before, f.name) for f in fields(kind) if choice is DATA and hasattr(before, f.name)}
    draft = _draft(owner, **{field: kind(**kept)})
    return _draft(recipe, **{above[0]: draft}) if above else draft


def _draft(settings: Any, **changes: Any) -> Any:
    """Like `replace`, but not checked."""
    draft = copy.copy(settings)
    for name, value in changes.items():
        object.__setattr__(draft, name, value)
    return draft


def options_of(recipe: Recipe, base: Recipe) -> list[str]:
    """The words of a command line that make `recipe` of `base`, but for its name."""
    words: list[str] = []
    for option, choice in CHOICES_BY_OPTION.items():
        ours, theirs = (_part(r, option) for r in (recipe, base))
        if type(ours) is not type(theirs):
            words += [f"--{option}", choice.name_of(ours)]
    start, _ = parts_chosen(base, words)
    before = dict(flat(content_of(start)))
    chosen = {"format", "name", *(f"{option}.name" for option in CHOICES_BY_OPTION)}
    for name, value in flat(content_of(recipe)):
        if name not in chosen and value != before[name]:
            words += option_words(name, value)
    return words


def _part(recipe: Recipe, option: str) -> Any:
    part: Any = recipe
    for name in option.split("."):
        part = getattr(part, name)
    return part


def option_words(name: str, value: Any) -> list[str]:
    """The words that set the field `name`: ["--train.lr", "0.1"], ["--train.no-compile"]."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        part, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{part}{dot}no-{last}"]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]


def parts_of(recipe: Recipe) -> dict[str, str]:
    """Return {part: the name that is chosen} of `CHOICES_BY_OPTION`."""
    return {option: choice.name_of(_part(recipe, option)) for option, choice in CHOICES_BY_OPTION.items()}


def choices() -> dict[str, list[str]]:
    """Return {part: the library's names for it} of `CHOICES_BY_OPTION`."""
    return {
        option: [name for name, kind in choice.library.items() if _fits(option, kind)]
        for option, choice in CHOICES_BY_OPTION.items()
    }


def _fits(option: str, settings: Any) -> bool:
    """Whether a quantizer is one for what `option` names; anything else is."""
    if option == "quant.act":
        return not settings.kind.weights_only
    return option != "quant.weight" or settings.kind is not LSQPlus
