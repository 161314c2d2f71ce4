"""Where a study works: its settings, its folder, the float networks that its arms start from."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spequant.app.commands.studies import Study
from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.command_line import recipe_named
from spequant.app.recipes.readiness import check_ready
from spequant.app.recipes.serial import from_json
from spequant.app.recipes.variants import FLOAT_QUANTIZATION, RETRAIN
from spequant.app.runs import Reporter, load_run
from spequant.app.runs.folder import RECIPE
from spequant.app.studies.arms import Arm, Trained, carry_out, reason, train_arms, train_at_once
from spequant.app.studies.compare import check_seeds
from spequant.app.studies.tables import CIFAR, RESNET20, Change, Family, arm
from spequant.app.studies.tiny import tiny, write_images
from spequant.app.terminal import Terminal
from spequant.data import DataSettings
from spequant.methods import SPEQ

SMOKE_IMAGES = "images"
"""the folder of the made-up images of --smoke, below the study's"""
FLOAT_RUN = "float"
"""stands for the folder of a float run that is not trained yet"""
LONG = "-200"
"""ends the name of a recipe with the paper's schedule, where the recipe without it has a short one"""


class Workshop:
    """Where a study works: its folder, its settings, the float networks that its arms start from."""

    def __init__(self, name: str, settings: Study):
        self.settings, self.name = settings, name
        self.folder = settings.out or Path("runs") / f"study-{name}"
        if self.folder.exists() and any(self.folder.iterdir()) and not settings.resume:
            raise FileExistsError(f"{self.folder} exists; go on with --resume, give another --out, or remove it")
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.runs = self.folder / "runs"
        self.seen = False
        """whether float weights may have seen what is held out"""
        self.seeds = settings.seeds[:2] if settings.smoke else settings.seeds
        check_seeds(self.seeds)
        if settings.at_once < 1:
            raise ValueError(f"at_once is {settings.at_once}; expected 1 or more")
        self.widths = (2, 4, 8) if settings.smoke else settings.widths
        if sorted(set(self.widths) & set(range(1, 9))) != sorted(self.widths) or not self.widths:
            raise ValueError(f"widths is {self.widths!r}; expected bits from 1 to 8, each once, e.g. --widths 2 4 8")

    def finished(self, folder: Path) -> tuple[Recipe, nn.Module]:
        """(recipe, network) of a finished run, with the data and on the device of the settings."""
        root = self.folder / SMOKE_IMAGES if self.settings.smoke else self.settings.root
        recipe, model, _ = load_run(folder, root, self.settings.device)
        data = recipe.data if root is None else replace(recipe.data, root=root)
        return replace(recipe, data=data, train=replace(recipe.train, device=self.settings.device)), model

    @contextmanager
    def phase(self, text: str) -> Iterator[Reporter]:
        """Inside, the terminal says that the study is doing `text`."""
        with Terminal(f"study {self.name}") as reporter:
            reporter.phase(text)
            yield reporter

    def train(self, arms: Sequence[Arm], seeds: Sequence[int] = ()) -> list[Trained]:
        """Each arm with its runs, one per seed; no `seeds`: all of the settings."""
        return train_arms(arms, seeds or self.seeds, self.runs, self.settings.at_once)

    def ahead(self, recipes: Sequence[Recipe]) -> None:
        """Train `recipes`, whose results are needed next, several at the same time where the settings say so."""
        if self.settings.at_once > 1:
            train_at_once(recipes, self.runs, self.settings.at_once)

    def family(self, families: Sequence[Family] = CIFAR) -> Family:
        """The network of a study of one network; its published figures where it is one of `families`."""
        name = self.settings.recipe or RESNET20
        if not isinstance(recipe_named(name).method, SPEQ.Settings):
            raise ValueError(f"recipe is {name!r}; expected a recipe of SPEQ's, e.g. {RESNET20} or {RESNET20}-200")
        alike = (f for f in families if f.speq.removesuffix(LONG) == name.removesuffix(LONG))  # at whatever length
        return replace(next(alike, Family(name.removesuffix("-speq"), name)), speq=name)

    def shared(self, size: int = 16, *, one: bool = True) -> Callable[[Recipe], Recipe]:
        """The change that the settings make in the recipe of every arm, which also trains its float network.

        Args:
            size: height and width of the images of --smoke, pixels.
            one: the study has one network, which `settings.weights` belong to.
        """
        settings = self.settings

        def change(recipe: Recipe) -> Recipe:
            train = replace(recipe.train, device=settings.device, threads=settings.threads)
            if settings.epochs is not None:
                train = replace(train, epochs=settings.epochs)
            fields = {"root": settings.root, "images": settings.train_images, "held_out": settings.held_out}
            data = replace(recipe.data, **{k: v for k, v in fields.items() if v is not None})
            train = replace(train, measure_every=train.epochs)  # held-out accuracy is read only at the end
            recipe = replace(recipe, train=train, data=data)
            if settings.smoke:
                recipe = tiny(recipe, write_images(self.folder / SMOKE_IMAGES, size), size)
            weights = settings.weights if one and settings.weights is not None else recipe.network.weights
            start = Path(FLOAT_RUN) if weights is None and not recipe.network.pretrained else weights
            check_ready(replace(recipe, network=replace(recipe.network, weights=start)))  # before that is trained
            return replace(recipe, network=replace(recipe.network, weights=self._start(recipe, weights)))

        return change

    def _start(self, recipe: Recipe, weights: Path | None) -> Path | None:
        """The float weights of `recipe`: a file, or a run's folder, which is trained here if a recipe has its name.

        A recipe that names no weights starts from the run of the recipe NETWORK-float.
        """
        if weights is None and not recipe.network.pretrained and (name := _float_name(recipe)) in RECIPES:
            weights = Path("runs") / name
        name = "" if weights is None else weights.name
        if self.settings.smoke:  # of two classes: no other weights fit
            floating = replace(recipe, name=f"{recipe.name}-float", quant=FLOAT_QUANTIZATION, method=RETRAIN)
            floating = replace(floating, network=replace(recipe.network, weights=None))
        elif weights is not None and weights == Path("runs") / name and name in RECIPES and not weights.exists():
            data = replace(RECIPES[name]().data, **_root(recipe.data))
            if recipe.data.held_out:  # the float network must not have seen these images either
                held_out = recipe.data.held_out if recipe.data.images is None else 0  # they lie behind the images
                data = replace(data, images=recipe.data.images, held_out=held_out)
            train = replace(RECIPES[name]().train, device=recipe.train.device, threads=recipe.train.threads)
            floating = replace(RECIPES[name](), data=data, train=train)
        elif weights is None and not recipe.network.pretrained:
            raise ValueError(
                f"weights is not set, and {recipe.name} names no float run to train first; expected --weights FILE, or "
                "the folder of a float run"
            )
        else:
            self.seen |= weights is not None and recipe.data.held_out > 0 and not _apart(weights, recipe.data)
            return weights
        return carry_out(floating, self.runs)[1]


def _root(data: DataSettings) -> dict[str, Any]:
    """The folder of the data, for sets that have one."""
    return {"root": data.root} if hasattr(data, "root") else {}  # type: ignore[attr-defined]


def _float_name(recipe: Recipe) -> str:
    """cifar10-resnet20-float of cifar10-resnet20-w2a2-speq-200."""
    return re.sub(r"-w\d+a\d+-.*", "-float", recipe.name)


def once(change: Callable[[Recipe], Recipe]) -> Callable[[Recipe], Recipe]:
    """`change`, carried out once for each recipe, by name."""
    changed: dict[str, Recipe] = {}

    def cached(recipe: Recipe) -> Recipe:
        if recipe.name not in changed:
            changed[recipe.name] = change(recipe)
        return changed[recipe.name]

    return cached


def about(shop: Workshop, *bases: str) -> str:
    """What the figures of a study are, in words.

    Args:
        shop: where the study works.
        bases: names of the catalogue's recipes that the runs are made from; none: the study's one recipe.
    """
    if shop.settings.smoke:
        return "SMOKE: one epoch on made-up images, to see that every arm runs. The figures say nothing."
    return (
        f"Seeds {', '.join(map(str, shop.seeds))}; all arms of a group start from the same weights, on the same "
        "schedule, but for what a note says. The difference is paired by seed, with its 95 % interval by Student's t."
        + _reservations(shop, bases)
    )


def about_one(shop: Workshop) -> str:
    """`about`, of a study whose networks have one seed."""
    if shop.settings.smoke:
        return about(shop)
    return f"One network each, seed {shop.seeds[0]}." + _reservations(shop, ())


def _reservations(shop: Workshop, bases: Sequence[str]) -> str:
    """What a reader must know: a shorter schedule than the paper's, and held-out images that were seen before."""
    settings = shop.settings
    text = ""
    for name in bases or (shop.family().speq,):
        recipe, full = recipe_named(name), recipe_named(f"{name}{LONG}" if f"{name}{LONG}" in RECIPES else name)
        epochs = recipe.train.epochs if settings.epochs is None else settings.epochs
        images = recipe.data.images if settings.train_images is None else settings.train_images
        less = [f"{epochs} of {full.train.epochs} epochs"] * (epochs < full.train.epochs)
        less += [f"{images} training images"] * (images is not None)
        if less and not text:
            text = f" NOT AT FULL LENGTH: {', '.join(less)}."
    if shop.seen:
        text += " The float weights were given: they may have seen the held-out images."
    return text


def _apart(weights: Path, data: DataSettings) -> bool:
    """Whether the float run in the folder `weights` did not train on the images that `data` holds out."""
    if not (weights / RECIPE).is_file():
        return False
    theirs = from_json((weights / RECIPE).read_text()).data
    if type(theirs) is not type(data):
        return True
    if theirs.images is None or data.images is None:
        return theirs.images is data.images and theirs.held_out >= data.held_out
    return theirs.images <= data.images


def low_bits(shop: Workshop, changes: Mapping[str, Change], seeds: Sequence[int] = ()) -> dict[str, Trained]:
    """Train the study's one network with each of `changes`.

    Args:
        shop: where.
        changes: of the recipe, by label.
        seeds: of the runs; none: all of the settings.

    Returns:
        {label: its runs that did not diverge}.

    Raises:
        FloatingPointError: all runs of a label diverged.
    """
    family, shared = shop.family(), once(shop.shared())
    arms = [arm(family, label, change, shared) for label, change in changes.items()]
    networks = {}
    for trained in shop.train(arms, seeds):
        label = trained.arm.label
        if not trained.results:
            raise FloatingPointError(f"{label} diverged, so that there is nothing to measure: {reason(trained.folder)}")
        networks[label] = replace(trained, runs={seed: trained.runs[seed] for seed in trained.results})
    return networks
