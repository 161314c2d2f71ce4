"""sensitivity: the loss that each layer costs at few bits, and mixed precision from it against uniform bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.training import device_named
from spequant.app.runs.fields import make_field
from spequant.app.runs.images import Images
from spequant.app.studies.arms import BASELINE, Arm, Trained, arms_report, equal_terms, facts_of_runs, folders_of
from spequant.app.studies.page import StudyReport
from spequant.app.studies.pictures import draw_lines
from spequant.app.studies.planned import PLANNED, Plans, planned
from spequant.app.studies.sensitivity import LAYER_IMAGES, assign, losses_alone, losses_raised, low_bit_layers
from spequant.app.studies.tables import method
from spequant.app.studies.workshop import Workshop, about, low_bits
from spequant.comparison.pictures import fit_limits, write_outliers
from spequant.deploy import LayerCost, model_costs
from spequant.methods import SPEQ
from spequant.preparation.placement import unprepare

LAYER_WIDTHS = (2, 3, 4, 8)
"""bits from which each layer's are chosen, the same for its weight and its input"""
UNIFORM = (2, 3, 4)
UNITS = {
    "size": ("KiB", 1024),
    "bit-operations": ("million bit operations", 10**6),
    "flash": ("KiB of flash", 1024),
    "ram": ("KiB of memory", 1024),
}


@dataclass(frozen=True)
class LayerMeasures:
    """Losses and costs of a network's layers.

    Args:
        alone: {bits: {layer: loss with only that layer quantized, minus the float network's}}, nats.
        raised: {layer: loss with its input at 8 bits, minus the trained network's}, nats.
        costs: {bits: {layer: cost}}, including the layers that keep their bits.
        images: what the losses were measured on, in words.
        plans: what the network takes as C; None: nobody asks.
    """

    alone: Mapping[int, Mapping[str, float]]
    raised: Mapping[str, float]
    costs: Mapping[int, Mapping[str, LayerCost]]
    images: str
    plans: Plans | None = None

    def cost(self, widths: Mapping[str, int], what: str) -> int:
        """Cost of the whole network with each layer at its bits in `widths`; what: a key of `UNITS`."""
        if what in PLANNED:
            assert self.plans is not None
            return self.plans.cost({name: widths[name] for name in self.raised}, what)
        fixed = next(iter(self.costs.values()))
        return sum(_of(self.costs[widths[n]][n] if n in widths else c, what) for n, c in fixed.items())

    def best(self, budget: float, what: str) -> dict[str, int]:
        """The bits of each layer with the least sum of losses, the whole network within `budget`."""
        names = list(self.raised)
        losses = {n: {bits: self.alone[bits][n] for bits in self.alone} for n in names}
        if what in PLANNED:
            assert self.plans is not None
            return self.plans.best(losses, budget, what)
        fixed = sum(_of(c, what) for n, c in next(iter(self.costs.values())).items() if n not in self.raised)
        return assign(
            losses,
            {n: {bits: _of(self.costs[bits][n], what) for bits in self.alone} for n in names},
            budget - fixed,
        )


def _of(cost: LayerCost, what: str) -> int:
    return cost.size if what == "size" else cost.bit_operations


def sensitivity(shop: Workshop) -> StudyReport:
    """What each layer costs at few bits; mixed precision from it, by SPEQ, against uniform bits. Takes a RUN."""
    base, recipe, folder = _subject(shop)
    with shop.phase("measuring each layer alone"):
        layers = layer_measures(recipe, shop.finished(folder)[1], planner=shop.settings.budget in PLANNED)
    arms = _arms(base, recipe, layers, shop)
    equal_terms(arms)
    done = shop.train(arms)
    report = arms_report("Sensitivity of layers, and mixed precision", "", done)
    table = [
        {
            "layer": n,
            **{f"alone at {bits} bits": f"{layers.alone[bits][n]:.4f}" for bits in LAYER_WIDTHS},
            "input raised to 8": f"{layers.raised[n]:.4f}",
            **{a.label: bits[n] for a in arms if n in (bits := _override_bits(a))},
        }
        for n in layers.raised
    ]
    text = (
        f"{about(shop, base)} The network is that of {folder}, on the first {layers.images}. Layers: loss above the "
        "float network's with one layer alone quantized, weight and input, batch norm on batch statistics; and loss "
        "above the trained network's with one layer's input at 8 bits. Mixed: each layer at one of "
        f"{', '.join(map(str, LAYER_WIDTHS))} bits, for the least sum of the former within the {shop.settings.budget}."
    )
    return replace(
        report,
        about=text,
        facts=facts_of_runs([folder, *folders_of(done)]),
        more={"layers": table},
        draw=lambda f: _draw(f, layers, done, shop.settings.budget),
    )


def _subject(shop: Workshop) -> tuple[str, Recipe, Path]:
    """(name in the catalogue, recipe, folder) of the run in the settings, or of a SPEQ run that is trained here."""
    folder = shop.settings.run
    if folder is None:
        network = low_bits(shop, {"SPEQ": method("speq")}, shop.seeds[:1])["SPEQ"]
        return network.arm.base, network.arm.recipe, network.folder
    if shop.settings.smoke:
        raise ValueError(f"run is {folder}, which --smoke does not take: it trains a network of its own")
    if shop.settings.recipe is not None:
        raise ValueError(f"recipe is {shop.settings.recipe!r}, which has no effect beside run; expected None")
    recipe = shop.finished(folder)[0]
    if recipe.name not in RECIPES or not recipe.quantized:
        raise ValueError(
            f"run is {folder}, of recipe {recipe.name!r}; expected a low-bit one that spequant recipes lists"
        )
    return recipe.name, shop.shared()(recipe), folder


def layer_measures(recipe: Recipe, model: nn.Module, *, planner: bool = False) -> LayerMeasures:
    """Measure the layers of a trained network, on held-out images of `recipe`, or else on training images.

    Args:
        recipe: Of the network.
        model: The network.
        planner: Whether flash and memory are asked for, too.

    Raises:
        ValueError: No layer has the recipe's bits, or with `planner` what has no form in C.
    """
    field = make_field(recipe, device_named(recipe.train.device))
    assert isinstance(field, Images) and field.example is not None
    names = low_bit_layers(model, recipe.quant.weight_bits, recipe.quant.act_bits)
    if not names:
        raise ValueError("run is a network no layer of which has the bits of its recipe; expected low bits")
    kind, data = ("training", field.train) if field.held_out is None else ("held-out", field.held_out)
    data = data.part(slice(0, LAYER_IMAGES))
    from_float = recipe.network.weights is not None or recipe.network.pretrained
    floating = field.network() if from_float else unprepare(model)
    alone, costs = {}, {}
    for bits in LAYER_WIDTHS:
        quantized = _uniform(recipe.quant, bits).calibrated(floating, field.calibration())
        costs[bits] = {c.name: c for c in model_costs(quantized, field.example)}
        without, losses = losses_alone(quantized, data)
        alone[bits] = {n: losses[n] - without for n in names}
    trained, raised = losses_raised(model, names, data)
    above = {n: loss - trained for n, loss in raised.items()}
    plans = None
    if planner:
        plans = planned(recipe.quant, floating, field.calibration()[:1], field.example, LAYER_WIDTHS)
    return LayerMeasures(alone, above, costs, f"{len(data)} {kind} images", plans)


def _uniform(quant: Quantization, bits: int) -> Quantization:
    return replace(quant, weight_bits=bits, act_bits=bits)


def _arms(base: str, recipe: Recipe, layers: LayerMeasures, shop: Workshop) -> list[Arm]:
    """Retrain and SPEQ at uniform bits, and SPEQ at mixed ones; budgets: the inner widths' costs, and the middles."""
    speq = recipe if isinstance(recipe.method, SPEQ.Settings) else replace(recipe, method=SPEQ.Settings())
    what, widths = shop.settings.budget, UNIFORM[:2] if shop.settings.smoke else UNIFORM
    group, shown = recipe.network.name, {n: u for n, u in UNITS.items() if n not in PLANNED or what in PLANNED}

    def arm(label: str, recipe: Recipe, bits: Mapping[str, int], note: str = "") -> Arm:
        more = {title: layers.cost(bits, name) / per for name, (title, per) in shown.items()}
        return Arm(group, label, base, recipe, note=note, changes=("quant.",), more=more)

    arms = []
    for bits in widths:
        everywhere, uniform = dict.fromkeys(layers.raised, bits), replace(speq, quant=_uniform(speq.quant, bits))
        if not arms:
            arms.append(arm(BASELINE, method("retrain")(uniform), everywhere))
        arms.append(arm(f"W{bits}A{bits}", uniform, everywhere, note="uniform"))
    costs = [layers.cost(dict.fromkeys(layers.raised, bits), what) for bits in widths]
    title, per = UNITS[what]
    budgets = sorted({*costs[1:-1], *((a + b) / 2 for a, b in pairwise(costs))})
    for text, budget in {f"{budget / per:.4g}": budget for budget in budgets}.items():  # 3 bits take the memory of 4
        chosen = layers.best(budget, what)
        texts = (f"{name}={bits}" for name, bits in chosen.items())
        mixed = replace(speq, quant=replace(speq.quant, overrides=(*speq.quant.overrides, *texts)))
        arms.append(arm(f"mixed, {text}", mixed, chosen, note=f"within {text} {title}"))
    return arms


def _override_bits(arm: Arm) -> dict[str, str]:
    """{layer: bits} of the arm's overrides."""
    return dict(text.rsplit("=", 1) for text in arm.recipe.quant.overrides)


def _draw(figure: Any, layers: LayerMeasures, done: Sequence[Trained], what: str) -> None:
    """Draw the losses of each layer, and the accuracy of trained networks over their costs."""
    names = list(layers.raised)
    figure.set_size_inches(12, max(4.5, 1.5 + 0.17 * len(names)))
    left, middle, right = figure.subplots(1, 3)
    limits = fit_limits(left, [0.0, *(layers.alone[bits][n] for bits in LAYER_WIDTHS[:3] for n in names)])
    for bits, mark in zip(LAYER_WIDTHS[:3], "osD", strict=True):
        left.plot([layers.alone[bits][n] for n in names], range(len(names)), mark, markersize=4, label=f"{bits} bits")
    for place, n in enumerate(names):
        write_outliers(left, place, [layers.alone[bits][n] for bits in LAYER_WIDTHS[:3]], limits, "x", 2)
    left.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    left.set_xlabel("loss above float's, quantized alone")
    limits = fit_limits(middle, [0.0, *layers.raised.values()])
    middle.barh(range(len(names)), list(layers.raised.values()))
    for place, n in enumerate(names):
        write_outliers(middle, place, [layers.raised[n]], limits, "x", 2)
    middle.set_xlabel("change of loss, input at 8 bits")
    for axes in (left, middle):
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.axvline(0, color="grey", linewidth=0.5)
        axes.locator_params(axis="x", nbins=5)
        axes.set_yticks(range(len(names)), names if axes is left else [], fontsize=7)
        axes.grid(axis="y", alpha=0.3)
    title = UNITS[what][0]
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    for trained in done:
        figures, kind = list(trained.figures("test_accuracy").values()), trained.arm.note.partition(" ")[0]
        if figures and kind in ("uniform", "within"):
            label = {"within": "mixed bits"}.get(kind, "uniform bits")
            lines.setdefault(label, []).append((trained.arm.more[title], figures))
    draw_lines(right, {label: sorted(points) for label, points in lines.items()}, digits=2)
    right.set_xlabel(title)
    right.set_ylabel("test accuracy, %, SPEQ: mean, 95 % interval")
    figure.supxlabel("layers: of one network, no interval", fontsize=8, color="dimgrey", x=0.3)
