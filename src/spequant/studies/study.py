"""The command `study`: the paper's tables and figures, re-runnable. What is done is kept, and the rest goes on."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spequant.recipes import RECIPES, Recipe, load_run
from spequant.recipes.build import device_of, with_seed
from spequant.recipes.fields import make_field
from spequant.recipes.images import Images
from spequant.recipes.variants import FLOAT
from spequant.recipes.variants import RETRAIN as WITHOUT_TEACHER
from spequant.studies.arms import (
    RETRAIN,
    Arm,
    arms_report,
    carry_out,
    chosen,
    command_of,
    equal_terms,
    facts_of,
    train_arms,
)
from spequant.studies.gradients import CONFIDENCES, fig3
from spequant.studies.greedy import greedy_order, held_or_test, soft_labels
from spequant.studies.page import Report, write_report
from spequant.studies.tables import CIFAR, IMAGENET, RESNET20, Family, arm, method, table2, table3, table4, table5
from spequant.studies.tiny import tiny, write_images
from spequant.studies.widths import WIDTHS, at_activation_widths, every_pair

IMAGES = 2000
"""of the greedy choice: each of its measurements runs the network on so many"""


@dataclass(frozen=True)
class Study:
    """Settings that every study takes."""

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
    """of studies on one network: the SPEQ recipe that all arms are made of; None: cifar10-resnet20-w2a2-speq"""
    weights: Path | None = None
    """float weights to start from, of studies on one network; None: those that the recipe names, whose run is trained
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
            floating = replace(recipe, name=f"{recipe.name}-float", quant=FLOAT, method=WITHOUT_TEACHER)
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


def _compared(
    title: str, families: Sequence[Family] | None, table: Callable[..., list[Arm]], size: int = 16
) -> Callable[[Workshop], Report]:
    """A study that trains arms. families: None: one network, the settings' own."""

    def study(shop: Workshop) -> Report:
        one = families is None
        known = families or [shop.family()]
        plain = [a for family in known for a in table(family, lambda recipe: recipe)]
        names = {(a.group, a.label) for a in chosen(plain, shop.settings.only)}
        asked = [family for family in known if any(group == family.group for group, _ in names)]
        shared = _once(shop.shared(size, one=one))  # which trains the float networks: of those asked for alone
        arms = [a for family in asked for a in table(family, shared) if (a.group, a.label) in names]
        equal_terms(arms)
        return arms_report(title, _about(shop), arms, train_arms(arms, shop.seeds, shop.runs))

    study.__doc__ = table.__doc__
    return study


def _float_name(recipe: Recipe) -> str:
    """cifar10-resnet20-float of cifar10-resnet20-w2a2-speq-200."""
    return re.sub(r"-w\d+a\d+-.*", "-float", recipe.name)


def _once(change: Callable[[Recipe], Recipe]) -> Callable[[Recipe], Recipe]:
    """`change`, carried out once for each recipe."""
    known: dict[str, Recipe] = {}

    def kept(recipe: Recipe) -> Recipe:
        if recipe.name not in known:
            known[recipe.name] = change(recipe)
        return known[recipe.name]

    return kept


def _about(shop: Workshop) -> str:
    if shop.settings.smoke:
        return "SMOKE: one epoch on made-up images, to see that every arm runs. The figures say nothing."
    return (
        f"Seeds {', '.join(map(str, shop.seeds))}; all arms of a group start from the same weights, on the same "
        "schedule. The difference is paired by seed, with its 95 % interval by Student's t."
    )


def _about_one(shop: Workshop) -> str:
    """Of studies whose networks have one seed."""
    return _about(shop) if shop.settings.smoke else f"One network each, seed {shop.seeds[0]}."


def _low_bit(shop: Workshop, label: str, family: Family, change: Callable[[Recipe], Recipe]) -> tuple[Arm, dict, Path]:
    """(arm, result, folder) of one run with the first seed."""
    made = arm(family, label, change, _once(shop.shared()))
    result, folder = carry_out(with_seed(made.recipe, shop.seeds[0]), shop.runs)
    return made, result, folder


def table1(shop: Workshop) -> Report:
    """A network trained at few bits, at every pair of widths."""
    family, widths = shop.family(), (2, 4, 8) if shop.settings.smoke else WIDTHS
    rows: list[dict[str, Any]] = []
    done = []
    for label, change in ((RETRAIN, method("retrain")), ("SPEQ", method("speq"))):
        made, result, folder = _low_bit(shop, label, family, change)
        done.append({shop.seeds[0]: (result, folder)})
        command = command_of(made.base, with_seed(made.recipe, shop.seeds[0]))
        rows += [{"network": label, **row, "command": command} for row in every_pair(folder, widths)]

    def draw(figure: Any) -> None:
        for axes, (label, kind) in zip(
            figure.subplots(1, 4), [(n, k) for n in (RETRAIN, "SPEQ") for k in ("bounds held", "refitted")], strict=True
        ):
            values = [[r[kind] for r in rows if r["network"] == label and r["weights"] == w] for w in widths]
            axes.imshow(values, vmin=min(map(min, values)), vmax=max(map(max, values)))
            for i, line in enumerate(values):
                for j, value in enumerate(line):
                    axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white")
            axes.set_xticks(range(len(widths)), widths)
            axes.set_yticks(range(len(widths)), widths)
            axes.set_xlabel("activation bits")
            axes.set_ylabel("weight bits")
            axes.set_title(f"{label}, {kind}", fontsize=9)

    about = f"{_about_one(shop)} Test accuracy, %, of one network at other widths; ends and addends keep theirs."
    return Report("Other widths than trained (table 1)", about, rows, draw, facts_of(done))


def any_precision(shop: Workshop) -> Report:
    """One SPEQ network at each activation width against networks trained at it."""
    family, widths = shop.family(), (2, 4, 8) if shop.settings.smoke else WIDTHS
    done, single = [], {}
    for label, change in (("SPEQ", method("speq")), ("joint bits", method("joint-bits")), (RETRAIN, method("retrain"))):
        _, result, folder = _low_bit(shop, label, family, change)
        done.append({shop.seeds[0]: (result, folder)})
        single[label] = at_activation_widths(folder, widths)
    rows = []
    for bits in widths:

        def at_bits(recipe: Recipe, bits: int = bits) -> Recipe:
            recipe = method("retrain")(recipe)
            return replace(recipe, quant=replace(recipe.quant, act_bits=bits))

        made, result, folder = _low_bit(shop, f"{RETRAIN} at {bits}", family, at_bits)
        done.append({shop.seeds[0]: (result, folder)})
        rows.append(
            {
                "activations": bits,
                **{f"one network, {label}": values[bits] for label, values in single.items()},
                "trained at this width": result["test_accuracy"],
                "command": command_of(made.base, with_seed(made.recipe, shop.seeds[0])),
            }
        )

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name in [n for n in rows[0] if n not in ("activations", "command")]:
            axes.plot(widths, [row[name] for row in rows], marker="o", label=name)
        axes.set_xlabel("activation bits")
        axes.set_ylabel("test accuracy, %")
        axes.legend(frameon=False)

    return Report("Any precision: one network at each activation width", _about_one(shop), rows, draw, facts_of(done))


def fig2(shop: Workshop) -> Report:
    """The order in which layers raised to 8 bits gain most; soft labels by width."""
    made, result, folder = _low_bit(shop, RETRAIN, shop.family(), method("retrain"))
    recipe, model, test = load_run(folder)
    field = make_field(recipe, device_of(recipe))
    assert isinstance(field, Images)
    data = field.held if field.held is not None else test
    images, labels = held_or_test(data, IMAGES)  # type: ignore[arg-type]
    order = greedy_order(model, images, labels)
    soft = soft_labels(model, images, labels, WIDTHS)
    command = command_of(made.base, with_seed(made.recipe, shop.seeds[0]))
    rows = [
        {"raised": s.raised, "layer": s.layer, "accuracy": s.accuracy, "loss": s.loss, "command": command}
        for s in order
    ]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        left.plot([s.raised for s in order], [s.accuracy for s in order], marker="o")
        left.set_xlabel("layers with 8-bit activations, greedily chosen")
        left.set_ylabel("accuracy, %")
        for name in ("confidence", "distance to 8 bits"):
            right.plot([row["activations"] for row in soft], [row[name] for row in soft], marker="o", label=name)
        right.set_xlabel("activation bits of all layers")
        right.set_title("soft labels", fontsize=10)
        right.legend(frameon=False)

    kind = "held-out" if field.held is not None else "test"
    told = "; ".join(
        f"A{row['activations']}: confidence {row['confidence']:.3f}, entropy {row['entropy']:.3f}, accuracy "
        f"{row['accuracy']:.2f}, distance to 8 bits {row['distance to 8 bits']:.4f}"
        for row in soft
    )
    about = f"{_about_one(shop)} {len(labels)} {kind} images, chosen by the loss. Soft labels: {told}."
    return Report(
        "Greedy order of layers, and soft labels (figure 2)", about, rows, draw, facts_of([{0: (result, folder)}])
    )


def figure3(shop: Workshop) -> Report:
    """Gradients of KL and cosine over teacher's and student's confidence; nothing is trained."""
    return fig3(CONFIDENCES[::4] if shop.settings.smoke else CONFIDENCES)


STUDIES: dict[str, Callable[[Workshop], Report]] = {
    "table1": table1,
    "fig2": fig2,
    "fig3": figure3,
    "table2": _compared("Losses and teachers (table 2)", None, table2),
    "table3": _compared("u, T and the weight (table 3)", None, table3),
    "table4": _compared("CIFAR networks and the rivals (table 4)", CIFAR, table4, size=32),
    "table5": _compared("ImageNet networks (table 5)", IMAGENET, table5, size=64),
    "any-precision": any_precision,
}


TRAINING = ("seeds", "recipe", "weights", "epochs", "images", "held_out", "root", "device", "threads")
WITHOUT_EFFECT = {
    "table1": ("only",),
    "fig2": ("only",),
    "any-precision": ("only",),
    "fig3": ("only", *TRAINING),
    "table4": ("recipe", "weights"),
    "table5": ("recipe", "weights"),
}
"""Settings that a study does not read: it is on several networks, has no arms, or trains nothing."""


def run_study(name: str, settings: Study) -> Path:
    """Carry out study `name`; the folder with table.csv, table.md, figure.png and page.html.

    ValueError: no such study, or settings that make none. FileExistsError: the folder holds something and `resume` is
    false.
    """
    if name not in STUDIES:
        raise ValueError(f"study is {name!r}; expected one of {', '.join(STUDIES)}")
    for field in WITHOUT_EFFECT.get(name, ()):
        value, default = getattr(settings, field), getattr(Study, field)
        if value != default:
            raise ValueError(f"{field} is {value!r}, which has no effect on {name}; expected {default!r}")
    shop = Workshop(name, settings)
    write_report(STUDIES[name](shop), shop.folder)
    return shop.folder
