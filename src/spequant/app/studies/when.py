"""when: what each method gains over Retrain, by how far the float network overfits."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.command_line import recipe_named
from spequant.app.runs.folder import main_figure, read_result, rows_of
from spequant.app.studies.arms import Arm, Trained, arms_report, carry_out, equal_terms
from spequant.app.studies.page import StudyReport
from spequant.app.studies.pictures import draw_lines
from spequant.app.studies.tables import EQUAL_TIME, Family, arm, longer, method, speq_and_kd
from spequant.app.studies.workshop import Workshop, about
from spequant.data import ImageSettings

FEW = "cifar10-5k-resnet20-w2a2-speq"
HELD_OUT = 20_000  # images, where the settings name no number


def when(shop: Workshop) -> StudyReport:
    """Gains over Retrain by the float network's gap between training and held-out accuracy: the same number of steps
    on fewer and on more images."""
    sizes = shop.settings.sizes
    if sorted(set(sizes)) != list(sizes) or not sizes or sizes[0] < 1:
        raise ValueError(f"sizes is {sizes!r}; expected numbers of images, each once, in ascending order")
    trained = shop.train([one for size in sizes for one in _arms(shop, size)])
    gaps = {t.arm.group: float_gap(Path(str(t.arm.recipe.network.weights))) for t in trained}
    trained = [replace(t, arm=replace(t.arm, more={"float gap": gaps[t.arm.group]})) for t in trained]
    text = f"{about(shop, shop.settings.recipe or FEW)} The float gap is training minus held-out accuracy."
    report = arms_report("When it helps: gain by how far the float network overfits", text, trained)
    return replace(report, draw=lambda figure: _draw(figure, trained, gaps))


def _arms(shop: Workshop, size: int) -> list[Arm]:
    """The arms on `size` training images, which start from a float network of these images alone."""
    settings, name = shop.settings, shop.settings.recipe or FEW
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
    family, shared = Family(f"{size:,} images", name), part.shared()(base)

    def start(_: Recipe) -> Recipe:
        return shared

    arms = [
        arm(family, "Retrain", method("retrain"), start),
        arm(family, "Retrain, equal time", lambda r: longer(method("retrain")(r)), start, **EQUAL_TIME),
        arm(family, "SPEQ", method("speq"), start),
        arm(family, "KD", method("distill", temperature=2.0), start, note="T = 2"),
        arm(family, "SPEQ and KD", speq_and_kd, start, note="SPEQ's settings"),
    ]
    equal_terms(arms)
    return arms


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
    held = {name: value for name, value in read_result(folder).items() if name.startswith("held_out_")}
    last = list(rows_of(folder, "epoch"))[-1]
    return float(last["train_accuracy"]) - float(held[main_figure(held)])


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
