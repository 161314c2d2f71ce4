"""What each step down in bits costs, by calibration alone and after short training, and the worst layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.table import Table

from spequant.app.commands.screen import print_table
from spequant.app.commands.training import Ladder
from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.command_line import about_recipe, recipe_named
from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.readiness import check_ready
from spequant.app.recipes.training import device_named
from spequant.app.runs import run
from spequant.app.runs.images import Images, measure
from spequant.app.studies.pictures import draw_lines
from spequant.app.studies.sensitivity import LAYER_IMAGES, losses_alone
from spequant.app.terminal import Terminal, title_of
from spequant.app.train import parse
from spequant.comparison.pictures import blank, save
from spequant.extras import needs
from spequant.files import write_json

RUNGS = ((8, 8), (4, 4), (2, 8), (8, 2), (2, 2))
"""(weight bits, activation bits) of each step"""


@dataclass(frozen=True)
class LadderRecipe(Ladder):
    """Settings of `ladder` with the recipe itself."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=lambda: ladder_recipe())


def ladder(words: Sequence[str]) -> None:
    """Carry out `spequant ladder WORDS`."""
    name = words[0] if words and not words[0].startswith("-") else None
    recipe = ladder_recipe() if name is None else recipe_named(name)
    about, prog = ("", "spequant ladder") if name is None else (about_recipe(name), f"spequant ladder {name}")
    about = f"{about}\n\n{Ladder.__doc__}".lstrip()
    run_ladder(parse(LadderRecipe(recipe=recipe), words[name is not None :], prog, about))


def ladder_recipe() -> Recipe:
    """Return the recipe that `ladder` has where none is named."""
    recipe = RECIPES["cifar10-resnet20-w2a2-retrain"]()
    train = replace(recipe.train, epochs=1, lr=0.02)
    return replace(recipe, name="ladder", data=replace(recipe.data, held_out=5000), quant=Quantization(), train=train)


def run_ladder(settings: LadderRecipe) -> None:
    """Print one table: held-out and test accuracy of each step, calibrated and trained, and its worst layer.

    Raises:
        ValueError: the recipe has no float weights, or no held-out images.
        FileExistsError: `settings.out` exists.
    """
    recipe = settings.recipe
    check_ready(recipe)
    if recipe.network.weights is None:
        raise ValueError(
            "network.weights is not set; the ladder starts from a float network: give its weight file, or the "
            "folder of a float run"
        )
    if settings.out.exists():
        raise FileExistsError(f"{settings.out} exists; give another --out, or remove it")
    needs("matplotlib.figure", "report")  # which the picture needs at the end
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    images = Images(recipe, device_named(recipe.train.device))
    if images.held_out is None:
        raise ValueError("data.held_out is 0; the ladder needs held-out images to name the worst layer")
    network, batches, rows = images.network(), images.calibration(), []
    for number, (weight, act) in enumerate(RUNGS, 1):
        rung = replace(recipe, name=f"W{weight}A{act}", quant=replace(recipe.quant, weight_bits=weight, act_bits=act))
        with Terminal(title_of(rung.name, rung.train.seed), number, len(RUNGS)) as reporter:
            reporter.phase("calibrating the network as a whole")
            model = rung.quant.calibrated(network, batches)
            reporter.phase("measuring each layer alone")
            costs = losses_alone(model, images.held_out.part(slice(0, LAYER_IMAGES)))[1]
            layer = max(costs, key=costs.__getitem__)
            reporter.phase("measuring the calibrated network")
            row = {
                "rung": rung.name,
                "calibrated": measure(model, images.held_out, track=reporter.track).accuracy,
                "calibrated_test": measure(model, images.test, track=reporter.track).accuracy,
                "worst_layer": layer,
                "worst_layer_loss": costs[layer],
            }
            result = run(rung, settings.out / rung.name, reporter)
        rows.append({**row, "trained": result["held_out_accuracy"], "trained_test": result["test_accuracy"]})
    table = Table("", "calibrated: held out", "test", "trained: held out", "test", "worst layer (loss if alone)")
    floating = {"held": measure(network, images.held_out).accuracy, "test": measure(network, images.test).accuracy}
    table.add_row("float", f"{floating['held']:.2f}", f"{floating['test']:.2f}")
    for row in rows:
        figures = [f"{row[k]:.2f}" for k in ("calibrated", "calibrated_test", "trained", "trained_test")]
        table.add_row(row["rung"], *figures, f"{row['worst_layer']} ({row['worst_layer_loss']:.3f})")
    print_table(table)
    write_json(settings.out / "ladder.json", {"float": floating, "rungs": rows})
    draw_ladder(floating["held"], rows, settings.out / "ladder.png")


def draw_ladder(floating: float, rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw held-out accuracy by step, calibrated and trained, below the float network's (PNG).

    Args:
        floating: held-out accuracy of the float network, %.
        rows: with `rung`, and the held-out accuracies `calibrated` and `trained`, %.
        out: the picture.
    """
    picture = blank(7, 4)
    axes = picture.subplots()
    lines = {f"{what}": [(i, [row[what]]) for i, row in enumerate(rows)] for what in ("calibrated", "trained")}
    lines["float"] = [(i, [floating]) for i in range(len(rows))]
    draw_lines(axes, lines)
    axes.set_xticks(range(len(rows)), [row["rung"] for row in rows])
    axes.set_ylabel("held-out accuracy, %")
    save(picture, out)
