"""The command soft-labels: a float teacher's answers to the crops of training, written to a file once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from spequant.app.commands.training import SoftLabels
from spequant.app.recipes import Recipe
from spequant.app.recipes.command_line import about_recipe, recipe_named
from spequant.app.recipes.origins import weights_origin
from spequant.app.recipes.recipe import Network
from spequant.app.recipes.serial import from_json
from spequant.app.recipes.training import device_named
from spequant.app.recipes.variants import FLOAT, RETRAIN
from spequant.app.runs.folder import RECIPE, run_first
from spequant.app.runs.images import EVAL_BATCH, Images, images_at_once
from spequant.app.terminal import Terminal
from spequant.app.train import parse
from spequant.data import make_soft_labels


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
    write_soft_labels(parse(settings, words[1:], f"spequant soft-labels {name}", f"{about}\n\n{SoftLabels.__doc__}"))


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


def write_soft_labels(settings: SoftLabelsOf) -> None:
    """Write the file, and print its size.

    Raises:
        FileNotFoundError: There are no such weights.
        OSError: The file cannot be written.
        ValueError: The teacher's weights are random; the data are no images of classes; or a number is out of range.
    """
    recipe = settings.recipe
    if recipe.network.random or recipe.network.new_head:
        raise ValueError(
            "network.weights is not set: random weights teach nothing; give a float run, or --network.weights RUN. "
            f"{weights_origin(recipe)}"
        )
    if recipe.asks:
        raise ValueError(f"data are {type(recipe.data).__name__}; expected images of classes")
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    recipe = replace(recipe, quant=FLOAT, method=RETRAIN)
    with Terminal(settings.out.name) as reporter:
        reporter.phase("loading data")
        images = Images(recipe, device_named(recipe.train.device))
        teacher = images.network().eval()
        reporter.phase("the teacher answers")
        labels = make_soft_labels(
            teacher,
            images.train,
            images.augment,
            settings.out,
            slots=settings.slots,
            top=settings.top,
            temperature=settings.temperature,
            seed=recipe.train.seed,
            batch_size=images_at_once(images.train, EVAL_BATCH),
            track=reporter.track,
        )
    size, count = settings.out.stat().st_size, labels.slots * len(labels.data)
    print(
        f"{settings.out}  {labels.slots} x {len(labels.data):,} crops, top {labels.top}  {size:,} bytes, "
        f"{size / count:.1f} per crop; KL lost {labels.lost:.1e} nats"
    )
    name = "" if labels.temperature == 1 else f" --method.temperature {labels.temperature:g}"
    print(f"to learn from it: spequant train RECIPE --method distill --method.soft-labels {settings.out}{name}")
