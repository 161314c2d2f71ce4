"""Where a study works: its settings, its folder, the float networks that its arms start from."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from spequant.recipes import RECIPES, Recipe
from spequant.recipes.variants import FLOAT, RETRAIN
from spequant.studies.arms import Arm, carry_out, train_arms, train_at_once
from spequant.studies.tables import CIFAR, RESNET20, Change, Family, arm
from spequant.studies.tiny import tiny, write_images
from spequant.studies.widths import WIDTHS


@dataclass(frozen=True)
class Study:
    """Settings of the studies. Those that one does not read are refused."""

    run: Positional[Path | None] = None
    """of sensitivity: a finished low-bit run; None: the recipe's, trained first"""
    budget: Literal["size", "bit-operations"] = "bit-operations"
    """of sensitivity: what its mixed networks have to stay within"""
    trials: int = 30
    """of beyond: for each of its searches"""
    widths: tuple[int, ...] = WIDTHS
    """bits that table1 and any-precision go through, and fig2's soft labels"""
    smoke: bool = False
    """two seeds of one epoch on a few made-up images: that it runs, no result"""
    resume: bool = False
    """keep what is finished below `out`, go on with what was interrupted"""
    out: Path | None = None
    """None: runs/study-NAME"""
    seeds: tuple[int, ...] = (0, 1, 2)
    only: tuple[str, ...] = ()
    """patterns of GROUP/ARM, of studies that compare arms: these alone"""
    recipe: str | None = None
    """the SPEQ recipe that all arms are made of; None: cifar10-resnet20-w2a2-speq; table4 and table5: all of theirs"""
    weights: Path | None = None
    """float weights to start from, of one network; None: those that the recipe names, whose run is trained
    first"""
    epochs: int | None = None
    """of low-bit runs; None: as the recipe has it"""
    images: int | None = None
    """train on the first so many alone"""
    held_out: int | None = None
    """training images kept apart for choices; None: as the recipe has it"""
    root: Path | None = None
    """folder of the data; None: SPEQUANT_DATA"""
    device: str = "auto"
    threads: int | None = None
    at_once: int = 1
    """runs at the same time, in processes of their own; the CPU's threads are divided among them"""


class Workshop:
    """Where a study works: its folder, its settings, the float networks that its arms start from."""

    def __init__(self, name: str, settings: Study):
        self.settings = settings
        self.folder = settings.out or Path("runs") / f"study-{name}"
        if self.folder.exists() and any(self.folder.iterdir()) and not settings.resume:
            raise FileExistsError(f"{self.folder} exists; go on with --resume, give another --out, or remove it")
        self.runs = self.folder / "runs"
        self.seeds = settings.seeds[:2] if settings.smoke else settings.seeds
        if not self.seeds:
            raise ValueError("seeds is empty; expected some, e.g. --seeds 0 1 2")
        if settings.at_once < 1:
            raise ValueError(f"at_once is {settings.at_once}; expected 1 or more")
        self.widths = (2, 4, 8) if settings.smoke else settings.widths
        if sorted(set(self.widths) & set(range(1, 9))) != sorted(self.widths) or not self.widths:
            raise ValueError(f"widths is {self.widths!r}; expected bits from 1 to 8, each once, e.g. --widths 2 4 8")

    def train(self, arms: Sequence[Arm], seeds: Sequence[int] = ()) -> list[dict[int, tuple[dict[str, Any], Path]]]:
        """{seed: (result, folder)} of each arm; seeds: all of the settings' where none is given."""
        return train_arms(arms, seeds or self.seeds, self.runs, self.settings.at_once)

    def ahead(self, recipes: Sequence[Recipe]) -> None:
        """Train those at once whose results are about to be asked for, where the settings say so."""
        if self.settings.at_once > 1:
            train_at_once(recipes, self.runs, self.settings.at_once)

    def family(self, known: Sequence[Family] = CIFAR) -> Family:
        """The network of a study on one of them."""
        name = self.settings.recipe or RESNET20
        if name not in RECIPES or RECIPES[name]().method.name != "speq":
            raise ValueError(f"recipe is {name!r}; expected a recipe of SPEQ's, e.g. {RESNET20} or {RESNET20}-200")
        return next((f for f in known if f.speq == name), Family(name.removesuffix("-speq"), name))

    def shared(self, size: int = 16, *, one: bool = True) -> Callable[[Recipe], Recipe]:
        """What the settings change in every arm. one: the study is on one network, whose weights may be given."""
        settings = self.settings

        def change(recipe: Recipe) -> Recipe:
            train = replace(recipe.train, device=settings.device, threads=settings.threads)
            if settings.epochs is not None:
                train = replace(train, epochs=settings.epochs)
            given = {"root": settings.root, "images": settings.images, "held_out": settings.held_out}
            data = replace(recipe.data, **{k: v for k, v in given.items() if v is not None})
            data = replace(data, measure_every=train.epochs)  # nobody reads what is held out before the end
            recipe = replace(recipe, train=train, data=data)
            if settings.smoke:
                recipe = tiny(recipe, write_images(self.folder / "images", size), size)
            weights = settings.weights if one and settings.weights is not None else recipe.network.weights
            return replace(recipe, network=replace(recipe.network, weights=self._start(recipe, weights)))

        return change

    def _start(self, recipe: Recipe, weights: Path | None) -> Path | None:
        """The float weights of `recipe`: a file, or a run's folder, trained here if a recipe has its name; where none
        is named, that of the recipe NETWORK-float."""
        if weights is None and not recipe.network.pretrained and (name := _float_name(recipe)) in RECIPES:
            weights = Path("runs") / name
        name = "" if weights is None else weights.name
        if self.settings.smoke and not (weights is not None and weights.exists()):
            floating = replace(recipe, name=f"{recipe.name}-float", quant=FLOAT, method=RETRAIN)
            floating = replace(floating, network=replace(recipe.network, weights=None))
        elif weights is not None and weights == Path("runs") / name and name in RECIPES and not weights.exists():
            data = replace(RECIPES[name]().data, root=recipe.data.root)
            train = replace(RECIPES[name]().train, device=recipe.train.device, threads=recipe.train.threads)
            floating = replace(RECIPES[name](), data=data, train=train)
        elif weights is None and not recipe.network.pretrained:
            raise ValueError(
                f"weights is not set, and {recipe.name} names no float run to train first; expected --weights FILE, or "
                "the folder of a float run"
            )
        else:
            return weights
        return carry_out(floating, self.runs)[1]


def _float_name(recipe: Recipe) -> str:
    """cifar10-resnet20-float of cifar10-resnet20-w2a2-speq-200."""
    return re.sub(r"-w\d+a\d+-.*", "-float", recipe.name)


def once(change: Callable[[Recipe], Recipe]) -> Callable[[Recipe], Recipe]:
    """`change`, carried out once for each recipe."""
    known: dict[str, Recipe] = {}

    def kept(recipe: Recipe) -> Recipe:
        if recipe.name not in known:
            known[recipe.name] = change(recipe)
        return known[recipe.name]

    return kept


def about(shop: Workshop) -> str:
    if shop.settings.smoke:
        return "SMOKE: one epoch on made-up images, to see that every arm runs. The figures say nothing."
    return (
        f"Seeds {', '.join(map(str, shop.seeds))}; all arms of a group start from the same weights, on the same "
        "schedule. The difference is paired by seed, with its 95 % interval by Student's t." + _schedule(shop.settings)
    )


def about_one(shop: Workshop) -> str:
    """Of studies whose networks have one seed."""
    return about(shop) if shop.settings.smoke else f"One network each, seed {shop.seeds[0]}." + _schedule(shop.settings)


def _schedule(settings: Study) -> str:
    """What is less than the recipe has: short schedules are marked as such. Of several networks any setting counts."""
    full = RECIPES[settings.recipe]().train.epochs if settings.recipe in RECIPES else math.inf
    epochs = settings.epochs if settings.epochs is not None and settings.epochs < full else None
    less = {"epochs": epochs, "training images": settings.images}
    changed = ", ".join(f"{value} {name}" for name, value in less.items() if value is not None)
    return f" NOT AT FULL LENGTH: {changed}, which the recipe has otherwise." if changed else ""


def low_bits(
    shop: Workshop, family: Family, changes: Mapping[str, Change]
) -> dict[str, tuple[Arm, dict[str, Any], Path]]:
    """{label: (arm, result, folder)}, one run each, with the first seed."""
    shared = once(shop.shared())
    arms = [arm(family, label, change, shared) for label, change in changes.items()]
    seed = shop.seeds[0]
    found = shop.train(arms, (seed,))
    return {made.label: (made, *done[seed]) for made, done in zip(arms, found, strict=True)}
