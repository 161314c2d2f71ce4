"""What each step down in bits costs, by calibration alone and after short training, and the worst layer."""

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from rich.table import Table

from spequant.app.recipes import RECIPES, Recipe, run
from spequant.app.recipes.build import build_augment, build_data, build_network, calibrated, device_of
from spequant.app.recipes.check import check
from spequant.app.recipes.schema import Quantization
from spequant.app.studies.sensitivity import losses_alone
from spequant.app.terminal import Terminal, print_table
from spequant.data import eval_batches, train_batches
from spequant.files import write_json
from spequant.train import evaluate

RUNGS = ((8, 8), (4, 4), (2, 8), (8, 2), (2, 2))  # (weight bits, activation bits)
IMAGES = 1000  # on which each layer alone is tried


@dataclass(frozen=True)
class Ladder:
    """Settings of the ladder."""

    recipe: Recipe = field(default_factory=lambda: _start())
    out: Path = Path("runs/ladder")
    """a folder a rung, and ladder.json"""


def _start() -> Recipe:
    recipe = RECIPES["cifar10-resnet20-w2a2-retrain"]()
    train = replace(recipe.train, epochs=1, lr=0.02)
    return replace(recipe, name="ladder", data=replace(recipe.data, held_out=5000), quant=Quantization(), train=train)


def run_ladder(settings: Ladder) -> None:
    """Print one table: held-out and test accuracy of each rung, calibrated and trained, and its worst layer."""
    recipe = settings.recipe
    check(recipe)
    if recipe.network.weights is None:
        raise ValueError(
            "recipe.network.weights is not set; the ladder starts from a float network: give its weight file, or the "
            "folder of a float run"
        )
    if settings.out.exists():
        raise FileExistsError(f"{settings.out} exists; give another --out, or remove it")
    device = device_of(recipe)
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    train, held, test = build_data(recipe.data, device, recipe.network.name)
    if held is None:
        raise ValueError("recipe.data.held_out is 0; the ladder needs held-out images to name the worst layer")
    network = build_network(recipe.network, train).to(device)
    augment = build_augment(recipe.data, train)
    batches = list(islice(train_batches(train, 128, seed=0, epoch=0, augment=augment), 8))
    rows = []
    for weight, act in RUNGS:
        rung = replace(recipe, name=f"W{weight}A{act}", quant=replace(recipe.quant, weight_bits=weight, act_bits=act))
        model = calibrated(network, rung.quant, batches)
        costs = losses_alone(model, held.part(slice(0, IMAGES)))[1]
        layer = max(costs, key=costs.__getitem__)
        row = {
            "rung": rung.name,
            "calibrated": evaluate(model, eval_batches(held, 500)).accuracy,
            "calibrated_test": evaluate(model, eval_batches(test, 500)).accuracy,
            "worst_layer": layer,
            "worst_layer_loss": costs[layer],
        }
        with Terminal(rung.name) as reporter:
            result = run(rung, settings.out / rung.name, reporter)
        rows.append({**row, "trained": result["held_out_accuracy"], "trained_test": result["test_accuracy"]})
    table = Table("", "calibrated: held out", "test", "trained: held out", "test", "worst layer (loss if alone)")
    floating = {
        name: evaluate(network, eval_batches(data, 500)).accuracy for name, data in (("held", held), ("test", test))
    }
    table.add_row("float", f"{floating['held']:.2f}", f"{floating['test']:.2f}")
    for row in rows:
        figures = [f"{row[k]:.2f}" for k in ("calibrated", "calibrated_test", "trained", "trained_test")]
        table.add_row(row["rung"], *figures, f"{row['worst_layer']} ({row['worst_layer_loss']:.3f})")
    print_table(table)
    write_json(settings.out / "ladder.json", {"float": floating, "rungs": rows})
