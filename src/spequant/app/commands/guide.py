"""The commands help and recipes, and the help of every command, as far as it is known without torch."""

import pkgutil
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.table import Table

from spequant.app.commands.explain import SettingRow, parts_in_words, print_help, prose, rows
from spequant.app.commands.index import index, parts_of_recipe, rows_of_recipe
from spequant.app.commands.screen import print_table
from spequant.app.commands.table import HELP, Command
from spequant.app.commands.training import Recipes


def print_recipes(settings: Recipes) -> None:
    """Print what the recipes of the catalogue are, or one as JSON; only that imports torch."""
    if settings.name is not None:
        pkgutil.resolve_name("spequant.app.train:print_recipe")(settings.name)
        return
    table = Table("recipe", "what it is")
    for name, entry in index()["recipes"].items():
        table.add_row(name, entry["about"])
    print_table(table)


def explain(command: Command, words: Sequence[str]) -> bool:
    """Print the help that `words`, which follow the command, ask for.

    Returns:
        Whether it was printed; otherwise only the command itself can say it: of a recipe of the user, or with other
        parts.
    """
    names = [word for word in words if word not in HELP]
    kind, prog, about = command.settings, command.prog, prose(command.settings.__doc__)
    if command.of == "study":
        studies = index()["studies"]
        if len(names) == 1 and names[0] in studies:
            prog, about = f"spequant study {names[0]}", f"{studies[names[0]]}\n\n{about}"
        else:
            about += "\n\nNAME is one of:\n" + "\n".join(f"  {name}: {text}" for name, text in studies.items())
    if command.of != "recipe":
        print_help(prog, about, rows(kind))
        return True
    recipes = index()["recipes"]
    if len(names) > 1 or not set(names) <= set(recipes):
        return False
    entry = recipes[names[0]] if names else index().get(command.name)
    if entry is None:
        about += "\n\n`spequant train RECIPE --help` says what can be set in a recipe, `spequant recipes` lists them."
        print_help(prog, about, rows(kind))
        return True
    parts = parts_in_words(parts_of_recipe(entry), index()["choices"])
    recipe = SettingRow("recipe", Annotated[object, tyro.conf.arg(name="")], "", rows_of_recipe(entry))
    prog = " ".join(["spequant", command.name, *names])
    print_help(prog, f"{entry['about']}\n\n{about}\n\n{parts}".lstrip(), [*rows(kind), recipe])
    return True
