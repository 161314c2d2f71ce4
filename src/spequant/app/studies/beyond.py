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

from spequant.app.recipes import Recipe
from spequant.app.recipes.command_line import recipe_named
from spequant.app.recipes.variants import extended, speq_of, with_speq
from spequant.app.runs.fields import make_field
from spequant.app.runs.folder import main_figure
from spequant.app.studies.arms import (
    BASELINE,
    Arm,
    arm_folder,
    arms_report,
    carry_out,
    equal_terms,
    facts_of_runs,
    folders_of,
)
from spequant.app.studies.page import StudyReport
from spequant.app.studies.tables import Change, longer, method, speq_and_kd
from spequant.app.studies.workshop import Workshop, about
from spequant.app.terminal import title_of
from spequant.extras import needs
from spequant.methods import SPEQ, SPEQDistill, by_name
from spequant.quantizers import LSQ

if TYPE_CHECKING:
    from optuna.trial import Trial

FINALISTS = 3
"""the best trials of each search that are trained with all seeds; the best mean of these wins"""

SEARCHED = (
    *("quant.weight", "quant.act", "network.weights"),
    *("train.lr", "train.weight_decay", "train.label_smoothing", "train.epochs"),
)
"""fields that a search may change, in addition to the method's"""

PROGRESSIVE = {"no": (), "4": (4,), "4 -> 3": (4, 3)}
"""bits of both weights and activations, before those of the recipe"""

NO_ACCURACY = -math.inf
"""the value of a trial whose loss was not finite"""

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
"""the first trial of each search, so that none ends below where it began"""


@dataclass(frozen=True)
class Tried:
    """A trial.

    Args:
        method: how it is trained.
        parts: {what is changed: the change}, in the order in which the changes are made.
        accuracy: on held-out images, %; `NO_ACCURACY` where there is none.
    """

    method: str
    parts: Mapping[str, Change]
    accuracy: float

    @property
    def label(self) -> str:
        """All that is changed, in words."""
        return ", ".join(self.parts) or "the paper's settings"


def retrain_parts(trial: "Trial", shop: Workshop, steps: int) -> dict[str, Change]:
    """What a trial of Retrain changes."""
    parts = _common_parts(trial)
    if smoothing := _other(trial, "label smoothing", [0.0, 0.05, 0.1]):
        parts[f"label smoothing {smoothing:g}"] = _set("train", label_smoothing=smoothing)
    return parts | _last_parts(trial, shop)


def speq_parts(trial: "Trial", shop: Workshop, steps: int) -> dict[str, Change]:
    """What a trial of SPEQ changes; steps: optimizer steps per epoch."""
    parts = _common_parts(trial)
    for name, setting, values in (
        ("T", "temperature", [1.0, 2.0, 4.0]),
        ("weight", "weight", [0.5, 1.0, 2.0, 4.0]),
        ("u", "probability", [0.25, 0.5, 0.75]),
    ):
        if value := _other(trial, name, values):
            parts[f"{name} = {value:g}"] = functools.partial(with_speq, **{setting: value})
    if passes := _other(trial, "passes", [1, 2]):
        parts[f"{passes} passes"] = functools.partial(with_speq, passes=passes)
    if _other(trial, "a separate teacher", [False, True]):
        parts["the float network as a teacher"] = speq_and_kd
        return parts | _last_parts(trial, shop)
    if trial.params["T"] > 1 and _other(trial, "T falls", [False, True]):
        parts["T falls to 1"] = functools.partial(extended, temperature_end=1.0)
    if _other(trial, "u falls", [False, True]):
        parts["u falls to 0"] = functools.partial(extended, probability_end=0.0)
    if epochs := _other(trial, "averaged epochs", [0.0, 0.25, 1.0]):
        decay = round(1 - 1 / (1 + epochs * steps), 4)  # whose weights reach back that far on average
        parts[f"weights averaged over {epochs:g} epochs teach"] = functools.partial(extended, average=decay)
    if feature := _other(trial, "features", [0.0, 0.5, 2.0]):
        parts[f"features, {feature:g}"] = functools.partial(extended, feature_weight=feature)
    return parts | _last_parts(trial, shop)


SEARCHES: dict[str, tuple[str, Callable[["Trial", Workshop, int], dict[str, Change]]]] = {
    "Retrain": ("retrain", retrain_parts),
    "SPEQ": ("speq", speq_parts),
}
"""{name: (method, what a trial changes, given the steps per epoch)}"""


def _common_parts(trial: "Trial") -> dict[str, Change]:
    """What both searches change first."""
    parts: dict[str, Change] = {}
    if _other(trial, "quantizers", ["recipe's", "lsq"]):
        parts["LSQ"] = _set("quant", weight=LSQ.Settings(), act=LSQ.Settings())
    if (rate := trial.suggest_float("rate", 0.5, 2.0, log=True)) != PAPER["rate"]:
        parts[f"lr x {rate:.2f}"] = _scaled("lr", rate)
    if decay := _other(trial, "weight decay", [0.5, 1.0, 2.0]):
        parts[f"weight decay x {decay:g}"] = _scaled("weight_decay", decay)
    return parts


def _last_parts(trial: "Trial", shop: Workshop) -> dict[str, Change]:
    """What both searches change last: it trains a network by all changes before it."""
    if (name := _other(trial, "progressive", list(PROGRESSIVE))) is None:
        return {}
    widths = PROGRESSIVE[name]
    label = f"{' -> '.join(map(str, widths))} bits for {len(widths)}/{len(widths) + 1} of the epochs first"
    return {label: functools.partial(_more_bits_first, shop, widths)}


def _other(trial: "Trial", name: str, values: Sequence[Any]) -> Any:
    """The trial's choice of `values`; None where it is the paper's."""
    value = trial.suggest_categorical(name, values)
    return None if value == PAPER[name] else value


def beyond_study(shop: Workshop) -> StudyReport:
    """What lifts SPEQ past the paper's settings: a search on held-out images, with as many trials for Retrain."""
    if shop.settings.trials < 1:
        raise ValueError(f"trials is {shop.settings.trials!r}; expected 1 or more")
    family = shop.family()
    base = shop.shared()(recipe_named(family.speq))
    if not base.data.held_out:
        raise ValueError("held_out is 0; expected training images to choose by, e.g. --held-out 5000")
    tried = {name: search(name, base, shop) for name in SEARCHES}
    best = {name: winner(trials, base, shop) for name, trials in tried.items()}

    def arm(label: str, tried: Tried, start: Recipe = base, note: str | None = None) -> Arm:
        recipe = _recipe(start, tried, shop)
        return Arm(family.group, label, family.speq, recipe, note=note or tried.label, changes=SEARCHED)

    arms = [Arm(family.group, BASELINE, family.speq, method("retrain")(base), paper=family.retrain)]
    arms.append(Arm(family.group, "SPEQ", family.speq, replace(base, method=SPEQ.Settings()), paper=family.paper))
    for name, won in best.items():
        arms.append(arm(f"{name}, best", won))
    more = longer(base, passes_of(arms[-1].recipe))
    note = f"{best['Retrain'].label}; {more.train.epochs} epochs, the wall time of SPEQ's best"
    arms.append(arm("Retrain, best, equal time", best["Retrain"], more, note))
    for part, rest in without_each(best["SPEQ"]).items():
        arms.append(arm(f"best without {part}", rest))
    equal_terms(arms)
    table = [
        {
            "search": name,
            "trial": i,
            "held out": None if t.accuracy == NO_ACCURACY else t.accuracy,
            "what": f"{t.label} (diverged)" if t.accuracy == NO_ACCURACY else t.label,
        }
        for name, trials in tried.items()
        for i, t in enumerate(trials)
    ]
    count = len(tried["SPEQ"])
    text = (
        f"{about(shop)} {count} trials for each search, by one seed's held-out images: the paper's settings first, "
        f"{startup(count) - 1} at random, the rest by TPE; the {FINALISTS} best of each with all seeds, the best "
        "mean of which won. Test figures chose nothing."
    )
    if any("bits for" in a.note for a in arms):
        text += (
            " What has more bits first has them in one run for all seeds, so that its deviation and interval are those "
            "of what follows; its seconds are the last part's."
        )
    done = shop.train(arms)
    report = arms_report("Beyond the paper's settings", text, done, [f"{name}, best" for name in SEARCHES])
    facts = facts_of_runs([*folders_of(done), *_folders(base, tried, shop)])
    return replace(report, facts=facts, more={"trials": table})


def passes_of(recipe: Recipe) -> int:
    """The number of teacher passes in a step of SPEQ."""
    return speq_of(recipe).passes + isinstance(recipe.method, SPEQDistill.Settings)


def without_each(won: Tried) -> dict[str, Tried]:
    """The ablation: {part: `won` without it}."""
    return {part: replace(won, parts={k: v for k, v in won.parts.items() if k != part}) for part in won.parts}


def search(name: str, base: Recipe, shop: Workshop) -> list[Tried]:
    """Carry out the search `name` from the recipe `base`, with as many trials as the settings say.

    After an interruption it asks for the same trials again, whose runs are there.
    """
    optuna = needs("optuna", "report")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = min(shop.settings.trials, 2) if shop.settings.smoke else shop.settings.trials
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=startup(trials))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    kind, parts_of = SEARCHES[name]
    study.enqueue_trial(PAPER)
    steps = make_field(base, torch.device("cpu")).sizes[0] // base.train.batch_size
    done: list[Tried] = []
    while len(done) < trials:
        batch = [study.ask() for _ in range(min(shop.settings.at_once, trials - len(done)))]
        changes = [Tried(kind, parts_of(trial, shop, steps), NO_ACCURACY) for trial in batch]
        shop.ahead(_recipes(base, changes, shop, shop.seeds[:1]))
        for trial, change in zip(batch, changes, strict=True):
            number = f"trial {len(done) + 1} of {trials} for {name}"
            accuracy = _held(change, base, shop, shop.seeds[0], number)
            done.append(replace(change, accuracy=accuracy))
            if accuracy == NO_ACCURACY:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, accuracy)
    return done


def startup(trials: int) -> int:
    """The number of random trials before TPE chooses: a third of all."""
    return max(2, trials // 3)


def winner(trials: Sequence[Tried], base: Recipe, shop: Workshop) -> Tried:
    """The trial with the best mean over all seeds, of the `FINALISTS` best on one seed's held-out images.

    Raises:
        FloatingPointError: every trial diverged.
    """
    finite = [t for t in trials if t.accuracy > NO_ACCURACY]
    if not finite:
        raise FloatingPointError(f"all of {len(trials)} trials diverged; expected a lower rate in {base.name}")
    finalists = sorted(finite, key=lambda t: -t.accuracy)[:FINALISTS]
    shop.ahead(_recipes(base, finalists, shop, shop.seeds))
    return max(finalists, key=lambda t: mean(_held(t, base, shop, seed, "finalist") for seed in shop.seeds))


def _held(tried: Tried, base: Recipe, shop: Workshop, seed: int, number: str) -> float:
    """Accuracy on held-out images of a trial trained with `seed`; number: which one it is, in words."""
    try:
        title = title_of(f"{number}: {tried.label}", seed)
        result = carry_out(_recipe(base, tried, shop).with_seed(seed), shop.runs, title)[0]
    except FloatingPointError:
        return NO_ACCURACY
    return float(result[main_figure(n for n in result if n.startswith("held_out_"))])


def _recipes(base: Recipe, tried: Sequence[Tried], shop: Workshop, seeds: Sequence[int]) -> list[Recipe]:
    """The recipes of trials with each seed; a trial whose start diverges has none."""
    recipes = []
    for trial in tried:
        with suppress(FloatingPointError):
            recipes.append(_recipe(base, trial, shop))
    return [recipe.with_seed(seed) for seed in seeds for recipe in recipes]


def _folders(base: Recipe, tried: Mapping[str, Sequence[Tried]], shop: Workshop) -> list[Path]:
    """The folders of all runs of the trials."""
    recipes = [r for trials in tried.values() for r in _recipes(base, trials, shop, shop.seeds)]
    return [folder for r in recipes if (folder := arm_folder(r, shop.runs)).exists()]


def _recipe(base: Recipe, tried: Tried, shop: Workshop) -> Recipe:
    start = replace(base, method=by_name[tried.method]())
    return functools.reduce(lambda recipe, change: change(recipe), tried.parts.values(), start)


def _more_bits_first(shop: Workshop, widths: Sequence[int], recipe: Recipe) -> Recipe:
    """Train at `widths` bits, one after another, and start `recipe` from the last of these networks.

    Each has an equal part of the epochs. They are trained here, by the same recipe, with one seed for all.
    """
    epochs, at_start = recipe.train.epochs, recipe.network.weights
    part = max(1, epochs // (len(widths) + 1))
    if isinstance(recipe.method, SPEQDistill.Settings):  # the float network teaches all parts
        taught = replace(recipe.method.distill, teacher=recipe.method.distill.teacher or at_start)
        recipe = replace(recipe, method=replace(recipe.method, distill=taught))
    for bits in widths:
        quant = replace(recipe.quant, weight_bits=bits, act_bits=bits)
        folder = carry_out(replace(recipe, quant=quant, train=replace(recipe.train, epochs=part)), shop.runs)[1]
        recipe = replace(recipe, network=replace(recipe.network, weights=folder))
    return replace(recipe, train=replace(recipe.train, epochs=max(1, epochs - len(widths) * part)))


def _set(part: str, **values: Any) -> Change:
    return lambda recipe: replace(recipe, **{part: replace(getattr(recipe, part), **values)})  # type: ignore[arg-type]


def _scaled(field: str, factor: float) -> Change:
    """A change of a number in `train`."""
    return lambda recipe: _set("train", **{field: getattr(recipe.train, field) * factor})(recipe)
