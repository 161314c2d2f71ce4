"""The commands train and runs, and a recipe as JSON."""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.table import Table

from spequant.app.commands.explain import parts_in_words, print_help, prose, rows
from spequant.app.commands.screen import print_table
from spequant.app.commands.table import HELP
from spequant.app.commands.training import Runs, Train
from spequant.app.recipes import Recipe
from spequant.app.recipes.command_line import about_recipe, choices, parts_chosen, parts_of, recipe_named
from spequant.app.recipes.origins import weights_origin
from spequant.app.recipes.serial import to_json
from spequant.app.runs import dry_run, listing, run
from spequant.app.runs.folder import figures, main_figure
from spequant.app.terminal import Terminal, figure_in_words, numbers_in_words, title_of
from spequant.processes import leave, rank
from spequant.train import Interrupted

Parsed = TypeVar("Parsed", bound=Any)


def print_recipe(name: str) -> None:
    """Print the recipe of that name as JSON."""
    print(to_json(recipe_named(name)))


@dataclass(frozen=True)
class TrainRecipe(Train):
    """Settings of `train` with the recipe itself."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


def parsed_train(name: str, words: Sequence[str]) -> TrainRecipe:
    """Return what `train NAME WORDS` asks for.

    Raises:
        ValueError: there is no such recipe, or two parts of it do not go together.
        SystemExit: an option is unknown or its value wrong, which was printed; or help was asked for.
    """
    if not name or name.startswith("-"):
        raise ValueError("no recipe is given; expected its name first, e.g. train digits-float (spequant recipes)")
    about = f"{about_recipe(name)}\n\n{Train.__doc__}"
    return parse(TrainRecipe(recipe=recipe_named(name)), words, f"spequant train {name}", about)


def parse(settings: Parsed, words: Sequence[str], prog: str, about: str) -> Parsed:
    """Return `settings` with what `words` set in them and in their recipe.

    Args:
        settings: a dataclass with a field `recipe`.
        words: of the command line, after the recipe's name.
        prog: what messages call the command.
        about: what help says first.

    Raises:
        ValueError: two parts of the recipe do not go together.
        SystemExit: an option is unknown or its value wrong, which was printed; or help was asked for.
    """
    recipe, left = parts_chosen(settings.recipe, words)
    settings = replace(settings, recipe=recipe)
    if HELP & set(left):
        print_help(
            prog, f"{prose(about)}\n\n{parts_in_words(parts_of(recipe), choices())}", rows(type(settings), settings)
        )
        raise SystemExit(0)
    return tyro.cli(type(settings), default=settings, args=left, prog=prog)


def run_name(recipe: Recipe) -> str:
    """Return the name of a run's folder."""
    return recipe.name if recipe.train.seed == 0 else f"{recipe.name}-seed{recipe.train.seed}"


def train(words: list[str]) -> None:
    """Carry out `spequant train WORDS`: train a recipe, or say what it would take."""
    settings = parsed_train(words[0] if words else "", words[1:])
    recipe = settings.recipe
    if recipe.quantized and recipe.network.random and rank() == 0:
        print(
            "network.weights is not set: low bits start from random weights (--network.weights RUN). "
            f"{weights_origin(recipe)}",
            file=sys.stderr,
        )
    if settings.dry_run:
        with Terminal(title_of(run_folder(settings).name, recipe.train.seed)) as reporter:
            estimate = dry_run(recipe, reporter)
        if rank() == 0:
            print(*estimate.lines(), sep="\n")
    else:
        _carry_out(settings, again=["spequant", "train", *words, *([] if settings.resume else ["--resume"])])
    leave()


def run_folder(settings: TrainRecipe) -> Path:
    """Return the folder of the run that `settings` ask for."""
    return settings.out or Path("runs") / run_name(settings.recipe)


def _carry_out(settings: TrainRecipe, again: Sequence[str]) -> None:
    """Train, and print the figures. again: the command that goes on after an interruption."""
    folder = run_folder(settings)
    try:
        with Terminal(title_of(folder.name, settings.recipe.train.seed)) as reporter:
            result = run(settings.recipe, folder, reporter, resume=settings.resume)
    except (Interrupted, KeyboardInterrupt) as stopped:
        if rank() == 0:
            done = f"{stopped}; saved in {folder}" if isinstance(stopped, Interrupted) else "interrupted"
            print(f"{done}. To go on: {shlex.join(again)}", file=sys.stderr)
        raise SystemExit(130) from None
    if rank() == 0:
        size = result["weight_bytes"] / 1024
        print(f"{numbers_in_words(figures(result, 'test_'))}  weights {size:.1f} KiB  -> {folder}")


def runs(settings: Runs) -> None:
    """Print a table of the runs below a folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not settings.folder.is_dir():
        raise FileNotFoundError(f"{settings.folder} does not exist; expected a folder with runs below it")
    table = Table("run", "recipe", "state", "epoch", "test", "held out", "last started")
    for row in listing(settings.folder):
        numbers = [_main_figure_in_words(figures(row, prefix)) for prefix in ("test_", "held_out_")]
        epoch = f"{row['epoch']}/{row['epochs']}" if "epoch" in row else "-"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["date"]))
        table.add_row(row["run"], row["recipe"], row["state"], epoch, *numbers, when)
    print_table(table)


def _main_figure_in_words(numbers: dict[str, float]) -> str:
    if not numbers:
        return "-"
    name = main_figure(numbers)
    return figure_in_words(name, numbers[name])
