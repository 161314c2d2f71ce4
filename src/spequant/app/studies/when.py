"""when: what each method gains over Retrain, by how far the float network overfits."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.command_line import recipe_named
from spequant.app.runs.folder import main_figure, read_result, rows_of
from spequant.app.runs.soft_labels import write_soft_labels
from spequant.app.studies.arms import BASELINE, Arm, Trained, arms_report, carry_out, equal_terms
from spequant.app.studies.page import StudyReport
from spequant.app.studies.pictures import draw_lines
from spequant.app.studies.tables import EQUAL_TIME, Change, Family, arm, longer, method, speq_and_kd
from spequant.app.studies.workshop import Workshop, about
from spequant.data import ImageSettings
from spequant.data.soft_labels import SLOTS

ARM_LABELS = (BASELINE, "Retrain, equal time", "SPEQ", "KD", "KD, soft labels", "SPEQ and KD")
TEMPERATURE = 2.0
"""of distillation"""
DEFAULT_RECIPE = "cifar10-5k-resnet20-w2a2-speq"
HELD_OUT = 20_000  # images, where the settings name no number


def when(shop: Workshop) -> StudyReport:
    """Gains over Retrain by the float network's gap between training and held-out accuracy: the same number of steps
    on fewer and on more images."""
    sizes = shop.settings.sizes
    if sorted(set(sizes)) != list(sizes) or not sizes or sizes[0] < 1:
        raise ValueError(f"sizes is {sizes!r}; expected numbers of images, each once, in ascending order")
    labels = {size: _chosen_labels(shop, size) for size in sizes}
    for pattern in shop.settings.only:
        if not any(fnmatchcase(f"{_group(size)}/{label}", pattern) for size in sizes for label in ARM_LABELS):
            raise ValueError(
                f"only has {pattern!r}, which matches no GROUP/ARM; groups are {', '.join(map(_group, sizes))}, arms "
                f"{', '.join(ARM_LABELS)}"
            )
    trained = shop.train([one for size in sizes if labels[size] for one in _arms(shop, size, labels[size])])
    gaps = {t.arm.group: float_gap(Path(str(t.arm.recipe.network.weights))) for t in trained}
    trained = [replace(t, arm=replace(t.arm, more={"float gap": gaps[t.arm.group]})) for t in trained]
    text = f"{about(shop, shop.settings.recipe or DEFAULT_RECIPE)} The float gap is training minus held-out accuracy."
    report = arms_report("When it helps: gain by how far the float network overfits", text, trained)
    return replace(report, draw=lambda figure: _draw(figure, trained, gaps))


def _group(size: int) -> str:
    return f"{size:,} images"


def _chosen_labels(shop: Workshop, size: int) -> list[str]:
    """The labels of the arms on `size` images that the settings choose; the baseline is among them."""
    patterns, names = shop.settings.only or ("*",), {label: f"{_group(size)}/{label}" for label in ARM_LABELS}
    labels = [label for label, name in names.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return labels if not labels or BASELINE in labels else [BASELINE, *labels]


def _arms(shop: Workshop, size: int, labels: Sequence[str]) -> list[Arm]:
    """The arms `labels` on `size` training images, which start from a float network of these images alone."""
    settings, name = shop.settings, shop.settings.recipe or DEFAULT_RECIPE
    base = recipe_named(name)
    images = settings.train_images or base.data.images
    if images is None or not isinstance(base.data, ImageSettings):
        raise ValueError(
            f"recipe is {name!r}, which trains on all images; expected --train-images N, which with --epochs says how "
            "many steps all sizes get"
        )
    held_out = HELD_OUT if settings.held_out is None else settings.held_out
    if not held_out:
        raise ValueError("held_out is 0; expected images on which the float network's gap is measured")
    share = images / size
    epochs = max(1, round((settings.epochs or base.train.epochs) * share))
    part = copy(shop)
    part.settings = replace(settings, train_images=size, held_out=held_out, epochs=epochs)
    if settings.weights is None and not settings.smoke:
        part.settings = replace(part.settings, weights=_float(part, share, base.network.weights))
    family, shared = Family(_group(size), name), part.shared()(base)

    def start(_: Recipe) -> Recipe:
        return shared

    def from_file(recipe: Recipe) -> Recipe:
        return method("distill", temperature=TEMPERATURE, soft_labels=_soft_labels(shop, shared))(recipe)

    changes: dict[str, tuple[Change, dict[str, Any]]] = {
        BASELINE: (method("retrain"), {}),
        "Retrain, equal time": (lambda r: longer(method("retrain")(r)), EQUAL_TIME),
        "SPEQ": (method("speq"), {}),
        "KD": (method("distill", temperature=TEMPERATURE), {"note": f"T = {TEMPERATURE:g}"}),
        "KD, soft labels": (from_file, {"note": f"T = {TEMPERATURE:g}, {SLOTS} crops per image, at Retrain's time"}),
        "SPEQ and KD": (speq_and_kd, {"note": "SPEQ's settings"}),
    }
    arms = [arm(family, label, changes[label][0], start, **changes[label][1]) for label in labels]
    equal_terms(arms)
    return arms


def _soft_labels(shop: Workshop, recipe: Recipe) -> Path:
    """The file of what the float network of `recipe` answers to the crops of its images; written where it is absent."""
    runs, weights = shop.runs, recipe.network.weights
    runs.mkdir(parents=True, exist_ok=True)
    teacher = "pretrained" if weights is None else weights.name
    path = runs / f"{teacher}-{recipe.data.images}-t{TEMPERATURE:g}-{SLOTS}.safetensors"
    if not path.exists():
        with shop.phase("soft labels") as reporter:
            write_soft_labels(recipe, path, reporter, slots=SLOTS, top=None, temperature=TEMPERATURE)
    return path


def _float(shop: Workshop, share: float, run: Path | None) -> Path:
    """Train the float network on the images of `shop`, the steps of its recipe in all; return the run's folder."""
    settings = shop.settings
    if run is None or run.name not in RECIPES:
        raise ValueError("weights is not set, and the recipe names no float run to train first; expected --weights RUN")
    recipe = RECIPES[run.name]()
    fields = {"images": settings.train_images, "held_out": settings.held_out, "root": settings.root}
    data = replace(recipe.data, **{name: value for name, value in fields.items() if value is not None})
    epochs = max(1, round(recipe.train.epochs * share))
    train = replace(recipe.train, epochs=epochs, device=settings.device, threads=settings.threads)
    return carry_out(replace(recipe, data=data, train=replace(train, measure_every=epochs)), shop.runs)[1]


def float_gap(folder: Path) -> float:
    """Return how far the float run in `folder` overfits, in points: training accuracy in its last epoch, on augmented
    images, minus held-out accuracy."""
    held_out = {name: value for name, value in read_result(folder).items() if name.startswith("held_out_")}
    last = list(rows_of(folder, "epoch"))[-1]
    return float(last["train_accuracy"]) - float(held_out[main_figure(held_out)])


def _draw(figure: Any, trained: Sequence[Trained], gaps: dict[str, float]) -> None:
    """Draw gains over Retrain, on held-out images, against the gap."""
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    for group, arms in groupby(trained, key=lambda t: t.arm.group):
        first, *others = arms
        name = main_figure(n for result in first.results.values() for n in result if n.startswith("held_out_"))
        base = first.figures(name)
        for other in others:
            gains = [value - base[seed] for seed, value in other.figures(name).items() if seed in base]
            if gains:
                lines.setdefault(other.arm.label, []).append((gaps[group], gains))
    axes = figure.subplots()
    draw_lines(axes, {label: sorted(points) for label, points in lines.items()}, digits=2)
    axes.axhline(0, color="0.4", linewidth=1, linestyle="--")
    axes.set_xlabel("float network: training minus held-out accuracy, points")
    axes.set_ylabel("held-out accuracy minus Retrain's, points:\nmean, 95 % interval")
