"""beyond: a search for what lifts SPEQ past the paper's settings, and as long a one for Retrain."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from spequant.extras import needs
from spequant.recipes import RECIPES, Recipe
from spequant.recipes.build import with_seed
from spequant.recipes.fields import make_field
from spequant.recipes.folder import main_figure
from spequant.recipes.schema import MethodChoice
from spequant.studies.arms import RETRAIN, Arm, arms_report, carry_out, equal_terms, facts_of, folder_of
from spequant.studies.page import Report
from spequant.studies.tables import Change, longer, method
from spequant.studies.workshop import Workshop, about

if TYPE_CHECKING:
    from optuna.trial import Trial

AGAIN = 3
"""best trials of each search that are trained with all seeds, of which the best mean wins"""

DIVERGED = -math.inf
"""what a trial is worth whose loss was not finite"""


@dataclass(frozen=True)
class Tried:
    """parts: {what is changed: the change}, in the order in which they are made. held: accuracy on held-out images,
    `DIVERGED` where there is none."""

    method: str
    parts: Mapping[str, Change]
    held: float

    @property
    def label(self) -> str:
        return ", ".join(self.parts) or "the paper's settings"


def common_parts(trial: "Trial") -> dict[str, Change]:
    """What both searches may change."""
    found: dict[str, Change] = {}
    if trial.suggest_categorical("quantizers", ["recipe's", "lsq"]) == "lsq":
        found["LSQ"] = _set("quant", weight="lsq", act="lsq")
    if (rate := trial.suggest_float("rate", 0.5, 2.0, log=True)) != 1.0:
        found[f"lr x {rate:.2f}"] = lambda r: replace(r, train=replace(r.train, lr=r.train.lr * rate))
    decay = trial.suggest_categorical("weight decay", [0.5, 1.0, 2.0])
    if decay != 1.0:
        found[f"weight decay x {decay:g}"] = lambda r: replace(
            r, train=replace(r.train, weight_decay=r.train.weight_decay * decay)
        )
    return found


def last_parts(trial: "Trial", shop: Workshop) -> dict[str, Change]:
    """What is made of all the rest."""
    first = trial.suggest_categorical("4 bits first", [False, True])
    return {"4 bits for half of the epochs": functools.partial(_four_bits_first, shop)} if first else {}


def retrain_parts(trial: "Trial", shop: Workshop, steps: int) -> dict[str, Change]:
    found = common_parts(trial)
    smoothing = trial.suggest_categorical("label smoothing", [0.0, 0.05, 0.1])
    if smoothing:
        found[f"label smoothing {smoothing:g}"] = _set("train", label_smoothing=smoothing)
    return found | last_parts(trial, shop)


def speq_parts(trial: "Trial", shop: Workshop, steps: int) -> dict[str, Change]:
    found = common_parts(trial)
    temperature = trial.suggest_categorical("T", [1.0, 2.0, 4.0])
    weight = trial.suggest_categorical("weight", [0.5, 1.0, 2.0, 4.0])
    probability = trial.suggest_categorical("u", [0.25, 0.5, 0.75])
    for name, setting, value, own in (
        ("T", "temperature", temperature, 1.0),
        ("weight", "weight", weight, 1.0),
        ("u", "probability", probability, 0.5),
    ):
        if value != own:
            found[f"{name} = {value:g}"] = _set("method", **{setting: value})
    if (passes := trial.suggest_categorical("passes", [1, 2])) > 1:
        found[f"{passes} passes"] = _set("method", passes=passes)
    if trial.suggest_categorical("a separate teacher", [False, True]):
        found["the float network as a teacher"] = _set("method", name="speq-distill")
        return found | last_parts(trial, shop)
    if temperature > 1 and trial.suggest_categorical("T falls", [False, True]):
        found["T falls to 1"] = _set("method", temperature_end=1.0)
    if trial.suggest_categorical("u falls", [False, True]):
        found["u falls to 0"] = _set("method", probability_end=0.0)
    if (epochs := trial.suggest_categorical("averaged epochs", [0.0, 0.25, 1.0])) > 0:
        decay = round(1 - 1 / (1 + epochs * steps), 4)  # whose weights reach back that far on average
        found[f"weights averaged over {epochs:g} epochs teach"] = _set("method", average=decay)
    if (feature := trial.suggest_categorical("features", [0.0, 0.5, 2.0])) > 0:
        found[f"features, {feature:g}"] = _set("method", feature_weight=feature)
    return found | last_parts(trial, shop)


SEARCHES: dict[str, tuple[str, Callable[["Trial", Workshop, int], dict[str, Change]]]] = {
    "Retrain": ("retrain", retrain_parts),
    "SPEQ": ("speq", speq_parts),
}
"""{name: (method, what a trial changes, of so many steps an epoch)}"""
PAPER = {
    "quantizers": "recipe's",
    "rate": 1.0,
    "weight decay": 1.0,
    "label smoothing": 0.0,
    "T": 1.0,
    "weight": 1.0,
    "u": 0.5,
    "passes": 1,
    "a separate teacher": False,
    "T falls": False,
    "u falls": False,
    "averaged epochs": 0.0,
    "features": 0.0,
    "4 bits first": False,
}
"""what each search tries first: none ends below where it began"""


def beyond(shop: Workshop) -> Report:
    """What lifts SPEQ past the paper's settings: a search on held-out images, with as many trials for Retrain."""
    if shop.settings.trials < 1:
        raise ValueError(f"trials is {shop.settings.trials!r}; expected 1 or more")
    family = shop.family()
    base = shop.shared()(RECIPES[family.speq]())
    if not base.data.held_out:
        raise ValueError("held_out is 0; expected training images to choose by, e.g. --held-out 5000")
    tried = {name: search(name, base, shop) for name in SEARCHES}
    best = {name: _best(found, base, shop) for name, found in tried.items()}
    arms = [Arm(family.group, RETRAIN, family.speq, method("retrain")(base), paper=family.retrain)]
    arms.append(Arm(family.group, "SPEQ", family.speq, replace(base, method=MethodChoice("speq")), paper=family.paper))
    for name, won in best.items():
        arms.append(Arm(family.group, f"{name}, best", family.speq, _recipe(base, won, shop), note=won.label))
    more = longer(base, passes_of(arms[-1].recipe.method))
    note = f"{best['Retrain'].label}; {more.train.epochs} epochs, the wall time of SPEQ's best"
    equal_time = _recipe(more, best["Retrain"], shop)
    arms.append(Arm(family.group, "Retrain, best, equal time", family.speq, equal_time, note=note))
    for part, rest in without_each(best["SPEQ"]).items():
        arms.append(Arm(family.group, f"best without {part}", family.speq, _recipe(base, rest, shop), note=rest.label))
    equal_terms(arms)
    table = [
        {
            "search": name,
            "trial": i,
            "held out": None if t.held == DIVERGED else t.held,
            "what": f"{t.label} (diverged)" if t.held == DIVERGED else t.label,
        }
        for name, found in tried.items()
        for i, t in enumerate(found)
    ]
    count = len(tried["SPEQ"])
    text = (
        f"{about(shop)} {count} trials for each search, by TPE, the paper's settings first, by one seed's held-out "
        f"images; the {AGAIN} best of each with all seeds, the best mean of which won. Test figures chose nothing."
    )
    if any("4 bits" in a.note for a in arms):
        text += " Seconds a run with 4 bits first are those of its second half."
    done = shop.train(arms)
    report = arms_report("Beyond the paper's settings", text, arms, done, [f"{name}, best" for name in SEARCHES])
    folders = [folder for runs in done for _, folder in runs.values()] + _folders(base, tried, shop)
    return replace(report, facts=facts_of(folders), more={"trials": table})


def passes_of(choice: MethodChoice) -> int:
    """Of teachers, in a step of SPEQ's."""
    return choice.passes + (choice.name == "speq-distill")


def without_each(won: Tried) -> dict[str, Tried]:
    """The ablation: {part: `won` without it}."""
    return {part: replace(won, parts={k: v for k, v in won.parts.items() if k != part}) for part in won.parts}


def search(name: str, base: Recipe, shop: Workshop) -> list[Tried]:
    """As many trials as the settings say. Repeated after an interruption, it asks for the very same ones, whose runs
    are there."""
    optuna = needs("optuna", "report")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    trials = min(shop.settings.trials, 2) if shop.settings.smoke else shop.settings.trials
    kind, parts = SEARCHES[name]
    study.enqueue_trial(PAPER)
    steps = make_field(base, torch.device("cpu")).sizes[0] // base.train.batch_size
    found: list[Tried] = []
    while len(found) < trials:
        asked = [study.ask() for _ in range(min(shop.settings.at_once, trials - len(found)))]
        tried = [Tried(kind, parts(trial, shop, steps), 0.0) for trial in asked]
        shop.ahead(_recipes(base, tried, shop, shop.seeds[:1]))
        for trial, t in zip(asked, tried, strict=True):
            found.append(replace(t, held=_held(t, base, shop, shop.seeds[0])))
            if found[-1].held == DIVERGED:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, found[-1].held)
    return found


def _best(found: Sequence[Tried], base: Recipe, shop: Workshop) -> Tried:
    different = {t.label: t for t in found if t.held > DIVERGED}  # trials may repeat
    if not different:
        raise FloatingPointError(f"all of {len(found)} trials diverged; expected a lower rate in {base.name}")
    first = sorted(different.values(), key=lambda t: -t.held)[:AGAIN]
    shop.ahead(_recipes(base, first, shop, shop.seeds))
    return max(first, key=lambda t: mean(_held(t, base, shop, seed) for seed in shop.seeds))


def _held(tried: Tried, base: Recipe, shop: Workshop, seed: int) -> float:
    try:
        result = carry_out(with_seed(_recipe(base, tried, shop), seed), shop.runs)[0]
    except FloatingPointError:
        return DIVERGED
    return float(result[main_figure(n for n in result if n.startswith("held_out_"))])


def _recipes(base: Recipe, tried: Sequence[Tried], shop: Workshop, seeds: Sequence[int]) -> list[Recipe]:
    """What is trained for each of them; nothing where its start diverges."""
    found = []
    for t in tried:
        with suppress(FloatingPointError):
            found.append(_recipe(base, t, shop))
    return [with_seed(recipe, seed) for seed in seeds for recipe in found]


def _folders(base: Recipe, tried: Mapping[str, Sequence[Tried]], shop: Workshop) -> list[Path]:
    """Of all runs of the trials."""
    recipes = [r for found in tried.values() for r in _recipes(base, found, shop, shop.seeds)]
    return [folder for r in recipes if (folder := folder_of(r, shop.runs)).exists()]


def _recipe(base: Recipe, tried: Tried, shop: Workshop) -> Recipe:
    start = replace(base, method=MethodChoice(tried.method))  # type: ignore[arg-type]
    return functools.reduce(lambda recipe, change: change(recipe), tried.parts.values(), start)


def _four_bits_first(shop: Workshop, recipe: Recipe) -> Recipe:
    """From W4A4's weights after half of the epochs, trained here by the same recipe, with one seed for all."""
    half = max(1, recipe.train.epochs // 2)
    at_start, at_four = recipe.network.weights, replace(recipe.quant, weight_bits=4, act_bits=4)
    folder = carry_out(replace(recipe, quant=at_four, train=replace(recipe.train, epochs=half)), shop.runs)[1]
    train = replace(recipe.train, epochs=max(1, recipe.train.epochs - half))
    recipe = replace(recipe, network=replace(recipe.network, weights=folder), train=train)
    if recipe.method.name != "speq-distill":
        return recipe
    teacher = recipe.method.teacher or at_start  # the float network still teaches
    return replace(recipe, method=replace(recipe.method, teacher=teacher))


def _set(part: str, **values: Any) -> Change:
    return lambda recipe: replace(recipe, **{part: replace(getattr(recipe, part), **values)})  # type: ignore[arg-type]
