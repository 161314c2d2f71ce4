"""The command `study`: the paper's tables and figures, which anybody can run again."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import tyro

from spequant.app.commands.studies import Study
from spequant.app.recipes import Recipe
from spequant.app.recipes.command_line import option_words
from spequant.app.studies.arms import (
    BASELINE,
    Arm,
    arms_report,
    chosen_arms,
    equal_terms,
    facts_of_runs,
    folders_of,
    over_seeds,
    same_columns,
)
from spequant.app.studies.beyond import beyond_study
from spequant.app.studies.gradients import fig3
from spequant.app.studies.greedy import fig2
from spequant.app.studies.mixed import sensitivity
from spequant.app.studies.page import StudyReport, write_report
from spequant.app.studies.pictures import draw_grids, draw_lines
from spequant.app.studies.tables import CIFAR, IMAGENET, Change, Family, method, table2, table3, table4, table5
from spequant.app.studies.when import when
from spequant.app.studies.widths import at_activation_widths, every_pair
from spequant.app.studies.workshop import Workshop, about, low_bits, once
from spequant.extras import needs

TABLE1_COLUMNS = ("bounds held", "refitted")
TRAINED = "trained at this width"


def _compared(
    title: str, families: Sequence[Family] | None, table: Callable[..., list[Arm]], size: int = 16
) -> Callable[[Workshop], StudyReport]:
    """A study that trains the arms of `table`.

    Args:
        title: of its report.
        families: its networks, where the settings name no recipe; None: it has only the one network of the settings.
        table: makes the arms of a network.
        size: height and width of the images of --smoke, pixels.
    """

    def study(shop: Workshop) -> StudyReport:
        one = families is None or shop.settings.recipe is not None
        if not one and shop.settings.weights is not None:
            raise ValueError(
                f"weights is {str(shop.settings.weights)!r}, which has no effect on several networks; choose one with "
                "--recipe, or leave it out"
            )
        networks = families if families is not None and not one else [shop.family(families or CIFAR)]
        plain = {family: table(family, lambda recipe: recipe) for family in networks}
        names = {
            (a.group, a.label) for a in chosen_arms([a for arms in plain.values() for a in arms], shop.settings.only)
        }
        networks = [family for family, arms in plain.items() if any((a.group, a.label) in names for a in arms)]
        shared = once(shop.shared(size, one=one))  # which trains the float networks, only of the chosen arms
        arms = [a for family in networks for a in table(family, shared) if (a.group, a.label) in names]
        equal_terms(arms)
        return arms_report(title, about(shop, *(a.base for a in arms)), shop.train(arms))

    study.__doc__ = table.__doc__
    return study


def table1(shop: Workshop) -> StudyReport:
    """Networks trained at few bits, at every pair of weight and activation widths."""
    widths = shop.widths
    networks = low_bits(shop, {BASELINE: method("retrain"), "SPEQ": method("speq")})
    accuracies: dict[str, Any] = {label: {} for label in networks}
    for label, network in networks.items():
        for seed, folder in network.folders.items():
            with shop.phase(f"measuring {label}, seed {seed}, at {len(widths) ** 2} pairs of widths"):
                accuracies[label][seed] = every_pair(*shop.finished(folder), widths)
    rows = []
    for label, network in networks.items():
        for weight, act in product(widths, widths):
            row = {"network": label, "weights": weight, "activations": act, "seeds": len(network.folders)}
            for column in TABLE1_COLUMNS:
                values = {
                    n: {s: pairs[weight, act][column] for s, pairs in seeds.items()} for n, seeds in accuracies.items()
                }
                against = {} if label == BASELINE else {BASELINE: values[BASELINE]}
                row |= over_seeds(column, values[label], against)
            rows.append({**row, "command": network.command})

    panels = {
        f"{label}, {column}": [
            [[pairs[weight, act][column] for pairs in accuracies[label].values()] for act in widths]
            for weight in widths
        ]
        for label, column in product(networks, TABLE1_COLUMNS)
    }
    text = f"{about(shop)} Test accuracy, %, of trained networks at other widths; ends and addends keep theirs."
    facts = facts_of_runs(folders_of(networks.values()))

    def draw(figure: Any) -> None:
        draw_grids(figure, panels, widths, "test accuracy, %")

    return StudyReport("Other widths than trained (table 1)", text, same_columns(rows), draw, facts)


def any_precision(shop: Workshop) -> StudyReport:
    """One SPEQ network at each activation width, against networks trained at that width."""
    widths = shop.widths
    measured = {"SPEQ": method("speq"), "joint bits": method("joint-bits"), BASELINE: method("retrain")}
    networks = low_bits(shop, measured | {f"{BASELINE} at {bits}": _retrain_at(bits) for bits in widths})
    single: dict[str, Any] = {label: {} for label in measured}
    for label in measured:
        for seed, folder in networks[label].folders.items():
            with shop.phase(f"measuring {label}, seed {seed}, at {len(widths)} widths"):
                single[label][seed] = at_activation_widths(*shop.finished(folder), widths)
    rows = []
    for bits in widths:
        network = networks[f"{BASELINE} at {bits}"]
        trained = network.figures("test_accuracy")
        row: dict[str, Any] = {"activations": bits, "seeds": len(trained), **over_seeds(TRAINED, trained, {})}
        for label, values in single.items():
            at_bits = {seed: accuracies[bits] for seed, accuracies in values.items()}
            row |= over_seeds(f"one network, {label}", at_bits, {"it": trained})
        rows.append({**row, "command": network.command})

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        trained = {bits: list(networks[f"{BASELINE} at {bits}"].figures("test_accuracy").values()) for bits in widths}
        lines = {TRAINED: list(trained.items())}
        for label, seeds in single.items():
            lines[f"one network, {label}"] = [(bits, [of[bits] for of in seeds.values()]) for bits in widths]
        draw_lines(axes, lines)
        axes.set_xticks(widths)
        axes.set_xlabel("activation bits")
        axes.set_ylabel("test accuracy, %: mean, 95 % interval")

    facts = facts_of_runs(folders_of(networks.values()))
    for label in measured:
        facts[f"command of the one network, {label}"] = networks[label].command
    text = f'{about(shop)} Test accuracy, %; "it" is a network trained at the width.'
    return StudyReport("Any precision: one network at each activation width", text, same_columns(rows), draw, facts)


def _retrain_at(act_bits: int) -> Change:
    def change(recipe: Recipe) -> Recipe:
        recipe = method("retrain")(recipe)
        return replace(recipe, quant=replace(recipe.quant, act_bits=act_bits))

    return change


STUDIES: dict[str, Callable[[Workshop], StudyReport]] = {
    "table1": table1,
    "fig2": fig2,
    "fig3": fig3,
    "table2": _compared("Losses and teachers (table 2)", None, table2),
    "table3": _compared("u, T and the weight (table 3)", None, table3),
    "table4": _compared("CIFAR networks and the rivals (table 4)", CIFAR, table4, size=32),
    "table5": _compared("ImageNet networks (table 5)", IMAGENET, table5, size=64),
    "any-precision": any_precision,
    "sensitivity": sensitivity,
    "beyond": beyond_study,
    "when": when,
}


READ_BY = {
    "run": ("sensitivity",),
    "budget": ("sensitivity",),
    "trials": ("beyond",),
    "sizes": ("when",),
    "widths": ("table1", "fig2", "any-precision"),
    "only": ("table2", "table3", "table4", "table5", "when"),
}
"""{setting: the studies that read it}; all studies that train read the other settings"""
TRAINING = ("seeds", "recipe", "weights", "epochs", "train_images", "held_out", "root", "device", "threads", "at_once")
NOT_READ = {"fig2": ("at_once",), "fig3": TRAINING}
"""{study: further settings that it does not read}"""


def study(words: Sequence[str]) -> None:
    """Carry out `spequant study WORDS`: the name of a study, and its settings.

    Raises:
        ValueError: no study is named, or as in `run_study`.
    """
    if not words or words[0].startswith("-"):
        raise ValueError(f"no study is named; expected one of {', '.join(STUDIES)}")
    name = words[0]
    folder = run_study(name, tyro.cli(Study, args=words[1:], prog=f"spequant study {name}"))
    print(f"{name}.md, .csv, .png and .html are in {folder}/")


def run_study(name: str, settings: Study) -> Path:
    """Carry out the study `name`.

    Returns:
        The folder with its files NAME.csv, NAME.md, NAME.png and NAME.html.

    Raises:
        ValueError: there is no such study, or a setting is wrong or not read by it.
        FileExistsError: the folder holds something and `resume` is false.
        ModuleNotFoundError: a package of the extra `report` is missing.
    """
    if name not in STUDIES:
        raise ValueError(f"study is {name!r}; expected one of {', '.join(STUDIES)}")
    for field in (*(field for field, studies in READ_BY.items() if name not in studies), *NOT_READ.get(name, ())):
        value, default = getattr(settings, field), getattr(Study, field)
        if value != default:
            raise ValueError(f"{field} is {value!r}, which has no effect on {name}; expected {default!r}")
    shop = Workshop(name, settings)
    for package in ("matplotlib.figure", "jinja2", "scipy.special"):
        needs(package, "report")  # which the page needs at the end
    report = STUDIES[name](shop)
    facts = {"command": study_command(name, settings), "written": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    write_report(replace(report, facts={**facts, **report.facts}), shop.folder, name)
    return shop.folder


def study_command(name: str, settings: Study) -> str:
    """The `spequant study` that carries out the study `name` with `settings`."""
    words = ["spequant", "study", name, *([] if settings.run is None else [str(settings.run)])]
    for field in fields(Study):
        value = getattr(settings, field.name)
        if value != field.default and field.name != "run":
            words += option_words(field.name, value)
    return shlex.join(words)
