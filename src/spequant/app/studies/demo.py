"""The command `demo`: a small float ResNet on handwritten digits, then W2A2 networks from it by Retrain and SPEQ."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from spequant.app.commands.screen import print_table
from spequant.app.commands.training import Demo
from spequant.app.recipes import RECIPES
from spequant.app.runs import run
from spequant.app.studies.compare import check_seeds
from spequant.app.studies.pictures import draw_curves
from spequant.app.terminal import Terminal
from spequant.comparison import compare, deviation, students_t
from spequant.extras import needs
from spequant.files import make_folder, remove

DEMO_MARK = ".demo"
"""a file that says that a demo made this folder"""
ARMS = {"float": "digits-float", "Retrain W2A2": "digits-w2a2-retrain", "SPEQ W2A2": "digits-w2a2-speq"}
"""{arm: its recipe}; the low-bit arms start from the float one"""
DEMO_HELD_OUT = 200
"""training images that the curves of accuracy are measured on, and nothing is trained on"""
DEMO_FILES = ("digits-float", "digits-w2a2-retrain-seed*", "digits-w2a2-speq-seed*", "curves.png")


def run_demo(settings: Demo) -> None:
    """Train, print one table, write curves, metrics and networks below `settings.out`.

    Raises:
        ValueError: no seeds, or a folder that holds something else.
        ModuleNotFoundError: a package of the extra `report` is missing.
    """
    check_seeds(settings.seeds)
    needs("matplotlib.figure", "report")  # which the curves need at the end
    if len(settings.seeds) > 1:
        students_t()
    if settings.out.exists() and not (settings.out / DEMO_MARK).exists() and any(settings.out.iterdir()):
        raise ValueError(
            f"out is {settings.out}, which holds something and was not made by a demo; name an empty or new folder"
        )
    make_folder(settings.out)
    (settings.out / DEMO_MARK).touch()
    for path in [path for pattern in DEMO_FILES for path in settings.out.glob(pattern)]:
        remove(path) if path.is_dir() else path.unlink()
    start = settings.out / "digits-float"
    runs: dict[str, dict[Path, dict[str, Any]]] = {arm: {} for arm in ARMS}
    count = 1 + (len(ARMS) - 1) * len(settings.seeds)
    for arm, name in ARMS.items():
        for seed in (0,) if arm == "float" else settings.seeds:
            recipe, folder = RECIPES[name]().with_seed(seed), start
            recipe = replace(recipe, data=replace(recipe.data, held_out=DEMO_HELD_OUT))
            if settings.epochs is not None:
                recipe = replace(recipe, train=replace(recipe.train, epochs=settings.epochs))
            if recipe.quantized:
                recipe = replace(recipe, network=replace(recipe.network, weights=start))
                folder = settings.out / f"{name}-seed{seed}"
            with Terminal(f"{arm}, seed {seed}", 1 + sum(map(len, runs.values())), count) as reporter:
                runs[arm][folder] = run(recipe, folder, reporter)
    print_table(_table(runs))
    if len(settings.seeds) > 1:
        arms = {arm: {r["seed"]: r["test_accuracy"] for r in runs[arm].values()} for arm in list(ARMS)[1:]}
        print(f"SPEQ - Retrain, paired: {compare(arms).arms[1].in_words()} points, 95 %, 500 test images")
    draw_curves(runs, settings.out / "curves.png")
    print(f"curves, metrics (JSON lines) and networks are in {settings.out}/")


def _table(runs: Mapping[str, Mapping[Path, dict[str, Any]]]) -> Table:
    table = Table("network", "test accuracy, %", "deviation", "weights, KiB", "seconds per run")
    for arm, folders in runs.items():
        results = list(folders.values())
        accuracy = [r["test_accuracy"] for r in results]
        spread = f"{deviation(accuracy):.2f}" if len(accuracy) > 1 else "-"
        size, seconds = results[0]["weight_bytes"] / 1024, mean(r["seconds"] for r in results)
        table.add_row(arm, f"{mean(accuracy):.2f}", spread, f"{size:.1f}", f"{seconds:.1f}")
    return table
