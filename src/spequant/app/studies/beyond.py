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

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.build import with_seed
from spequant.app.recipes.fields import make_field
from spequant.app.recipes.folder import main_figure
from spequant.app.recipes.schema import MethodChoice
from spequant.app.studies.arms import RETRAIN, Arm, arms_report, carry_out, equal_terms, facts_of, folder_of, folders_of
from spequant.app.studies.page import Report
from spequant.app.studies.tables import Change, longer, method
from spequant.app.studies.workshop import Workshop, about
from spequant.extras import needs

if TYPE_CHECKING:
    from optuna.trial import Trial

AGAIN = 3
"""best trials of each search that are trained with all seeds, of which the best mean wins"""

SEARCHED = (
    *("quant.weight", "quant.act", "network.weights"),
    *("train.lr", "train.weight_decay", "train.label_smoothing", "train.epochs"),
)
"""fields that a search may change, beside the method's"""

PROGRESSIVE = {"no": (), "4": (4,), "4 -> 3": (4, 3)}
"""bits of weights and activations alike, before those of the recipe"""

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
    first = PROGRESSIVE[trial.suggest_categorical("progressive", list(PROGRESSIVE))]
    label = f"{' -> '.join(map(str, first))} bits for {len(first)}/{len(first) + 1} of the epochs first"
    return {label: functools.partial(_more_bits_first, shop, first)} if first else {}


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
    "progressive": "no",
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
    best = {name: winner(found, base, shop) for name, found in tried.items()}

    def arm(label: str, tried: Tried, start: Recipe = base, note: str | None = None) -> Arm:
        recipe = _recipe(start, tried, shop)
        return Arm(family.group, label, family.speq, recipe, note=note or tried.label, changes=SEARCHED)

    arms = [Arm(family.group, RETRAIN, family.speq, method("retrain")(base), paper=family.retrain)]
    arms.append(Arm(family.group, "SPEQ", family.speq, replace(base, method=MethodChoice("speq")), paper=family.paper))
    for name, won in best.items():
        arms.append(arm(f"{name}, best", won))
    more = longer(base, passes_of(arms[-1].recipe.method))
    note = f"{best['Retrain'].label}; {more.train.epochs} epochs, the wall time of SPEQ's best"
    arms.append(arm("Retrain, best, equal time", best["Retrain"], more, note))
    for part, rest in without_each(best["SPEQ"]).items():
        arms.append(arm(f"best without {part}", rest))
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
        f"{about(shop)} {count} trials for each search, by one seed's held-out images: the paper's settings first, "
        f"{startup(count) - 1} at random, the rest by TPE; the {AGAIN} best of each with all seeds, the best mean of "
        "which won. Test figures chose nothing."
    )
    if any("bits for" in a.note for a in arms):
        text += (
            " What has more bits first has them in one run for all seeds, so that its deviation and interval are those "
            "of what follows; its seconds are the last part's."
        )
    done = shop.train(arms)
    report = arms_report("Beyond the paper's settings", text, done, [f"{name}, best" for name in SEARCHES])
    facts = facts_of([*folders_of(done), *_folders(base, tried, shop)])
    return replace(report, facts=facts, more={"trials": table})


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
    trials = min(shop.settings.trials, 2) if shop.settings.smoke else shop.settings.trials
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=startup(trials))
    study = optuna.create_study(direction="maximize", sampler=sampler)
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


def startup(trials: int) -> int:
    """Trials before TPE has enough to go by, a third of all."""
    return max(2, trials // 3)


def winner(found: Sequence[Tried], base: Recipe, shop: Workshop) -> Tried:
    """Of the `AGAIN` best on one seed's held-out images, the one whose mean over all seeds is best.

    FloatingPointError: every trial diverged."""
    finite = [t for t in found if t.held > DIVERGED]
    if not finite:
        raise FloatingPointError(f"all of {len(found)} trials diverged; expected a lower rate in {base.name}")
    first = sorted(finite, key=lambda t: -t.held)[:AGAIN]
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


def _more_bits_first(shop: Workshop, widths: Sequence[int], recipe: Recipe) -> Recipe:
    """From weights that were trained at `widths` bits one after another, here, by the same recipe and with one seed for
    all, an equal part of the epochs each."""
    epochs, at_start = recipe.train.epochs, recipe.network.weights
    part = max(1, epochs // (len(widths) + 1))
    if recipe.method.name == "speq-distill":  # the float network teaches all parts
        recipe = replace(recipe, method=replace(recipe.method, teacher=recipe.method.teacher or at_start))
    for bits in widths:
        quant = replace(recipe.quant, weight_bits=bits, act_bits=bits)
        folder = carry_out(replace(recipe, quant=quant, train=replace(recipe.train, epochs=part)), shop.runs)[1]
        recipe = replace(recipe, network=replace(recipe.network, weights=folder))
    return replace(recipe, train=replace(recipe.train, epochs=max(1, epochs - len(widths) * part)))


def _set(part: str, **values: Any) -> Change:
    return lambda recipe: replace(recipe, **{part: replace(getattr(recipe, part), **values)})  # type: ignore[arg-type]
