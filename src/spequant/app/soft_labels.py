"""The command soft-labels: a float teacher's answers to the crops of training, written to a file once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from spequant.app.commands.training import SoftLabels
from spequant.app.recipes import Recipe
from spequant.app.recipes.command_line import about_recipe, recipe_named
from spequant.app.recipes.recipe import Network
from spequant.app.recipes.serial import from_json
from spequant.app.runs.folder import RECIPE, run_first
from spequant.app.runs.soft_labels import write_soft_labels
from spequant.app.terminal import Terminal
from spequant.app.train import parse


@dataclass(frozen=True)
class SoftLabelsOf(SoftLabels):
    """Settings of `soft-labels` with the recipe itself."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


def soft_labels(words: Sequence[str]) -> None:
    """Carry out `spequant soft-labels WORDS`."""
    name = words[0] if words else ""
    if not name or name.startswith("-"):
        raise ValueError("no run or recipe is given; expected it first, e.g. soft-labels runs/digits-float")
    recipe = recipe_of_run(Path(name)) if _names_run(name) else recipe_named(name)
    about = "" if _names_run(name) else about_recipe(name)
    settings = SoftLabelsOf(recipe=recipe)
    print_soft_labels(parse(settings, words[1:], f"spequant soft-labels {name}", f"{about}\n\n{SoftLabels.__doc__}"))


def _names_run(name: str) -> bool:
    """Whether a word is the folder of a run, not a recipe's name or file."""
    return (Path(name) / RECIPE).is_file() or ("/" in name and ":" not in name and not name.endswith(".json"))


def recipe_of_run(folder: Path) -> Recipe:
    """Return the recipe of a float run, whose network has the weights that it trained.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: The run is of low bits.
    """
    if not (folder / RECIPE).is_file():
        raise FileNotFoundError(f"{folder / RECIPE} does not exist; expected a float run{run_first(folder)}")
    recipe = from_json((folder / RECIPE).read_text())
    if recipe.quantized:
        raise ValueError(f"{folder} is a low-bit run; expected a float one, the teacher")
    return replace(recipe, network=Network(name=recipe.network.name, weights=folder))


def print_soft_labels(settings: SoftLabelsOf) -> None:
    """Write the file, and print its size."""
    with Terminal(settings.out.name) as reporter:
        labels = write_soft_labels(
            settings.recipe,
            settings.out,
            reporter,
            slots=settings.slots,
            top=settings.top,
            temperature=settings.temperature,
        )
    size, count = settings.out.stat().st_size, labels.slots * len(labels.data)
    print(
        f"{settings.out}  {labels.slots} x {len(labels.data):,} crops, top {labels.top}  {size:,} bytes, "
        f"{size / count:.1f} per crop; KL lost {labels.lost:.1e} nats"
    )
    name = "" if labels.temperature == 1 else f" --method.temperature {labels.temperature:g}"
    print(f"to learn from it: spequant train RECIPE --method distill --method.soft-labels {settings.out}{name}")
