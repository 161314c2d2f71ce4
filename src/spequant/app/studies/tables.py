"""The paper's tables that compare ways of training: their arms, from which start, on which schedule."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from spequant.app.recipes import Recipe
from spequant.app.recipes.command_line import recipe_named
from spequant.app.recipes.variants import speq_distill, speq_of
from spequant.app.studies.arms import BASELINE, Arm
from spequant.methods import by_name
from spequant.quantizers import StatsQ

TEACHER_PASS = 1 / 3
"""the time of a teacher's pass, in steps of Retrain: SPEQ's step takes 1.25 to 1.33 of Retrain's (benchmarks)"""
EQUAL_TIME = {"note": "4/3 of the epochs: SPEQ's wall time", "changes": ("train.epochs",)}
APPRENTICE_B, STARTS = "Apprentice B", ("network.weights", "network.pretrained")
STATISTICS = ("quant.weight", "quant.per_channel")
ABSTRACT = "built only from the abstract"
OURS = ": ours, from abstracts"
"""ends the name of the group of such arms"""


@dataclass(frozen=True)
class Family:
    """A network of the paper's tables.

    Args:
        group: the network and its data, in words.
        speq: name of its SPEQ recipe.
        retrain: the published accuracy of Retrain, %.
        paper: the published accuracy of SPEQ, %.
    """

    group: str
    speq: str
    retrain: float | None = None
    paper: float | None = None


RESNET20 = "cifar10-resnet20-w2a2-speq"
CIFAR = (
    Family("VGG16, CIFAR-10", "cifar10-vgg16-w2a2-speq"),
    Family("ResNet-20, CIFAR-10", f"{RESNET20}-200", 90.7, 91.44),
    Family("ResNet-32, CIFAR-100", "cifar100-resnet32-w2a2-speq"),
    Family("MobileNetV2, CIFAR-100", "cifar100-mobilenetv2-w2a2-speq"),
)
IMAGENET = (
    Family("AlexNet", "imagenet-alexnet-w2a2-speq", 56.9, 59.3),
    Family("ResNet-18", "imagenet-resnet18-w2a2-speq", 66.6, 67.4),
    Family("ResNet-34", "imagenet-resnet34-w2a2-speq", 70.5, 71.5),
    Family("EfficientNet-B0, W3A3", "imagenet-efficientnet-b0-w3a3-speq", None, 69.5),
)

Change = Callable[[Recipe], Recipe]


def method(name: str, **settings: Any) -> Change:
    """The change to the method `name`; nothing else changes.

    Where the recipe has that method already, it keeps the settings that are not named here.
    """

    def change(recipe: Recipe) -> Recipe:
        kind = by_name[name]
        start = recipe.method if type(recipe.method) is kind else kind()
        return replace(recipe, method=replace(start, **settings))

    return change


def longer(recipe: Recipe, passes: int = 1) -> Recipe:
    """`recipe`, of Retrain, with as many epochs as take the wall time of a method.

    Args:
        recipe: with the method's epochs.
        passes: teacher passes per step of the method.
    """
    epochs = round(recipe.train.epochs * (1 + passes * TEACHER_PASS))
    return replace(recipe, train=replace(recipe.train, epochs=epochs))


def arm(family: Family, label: str, change: Change, shared: Change, **about: Any) -> Arm:
    """An arm on a network: `change` after `shared`, what all arms have in common; about: further fields of the arm."""
    group = family.group + (OURS if about.pop("ours", False) else "")
    return Arm(group, label, family.speq, change(shared(recipe_named(family.speq))), **about)


def table2(family: Family, shared: Change) -> list[Arm]:
    """Loss {KL, cosine} x teacher {always n_H, stochastic u = .5, Mix}."""
    teachers = {"always 8 bits": {"probability": 1.0}, "stochastic, u = .5": {}, "Mix": {"mix": True}}
    arms = [arm(family, BASELINE, method("retrain"), shared, paper=family.retrain)]
    published = {("cosine", "stochastic, u = .5"): 91.44, ("cosine", "Mix"): 91.23}
    for loss in ("kl", "cosine"):
        for label, settings in teachers.items():
            paper = published.get((loss, label)) if family.speq.startswith(RESNET20) else None
            change = method("speq", loss=loss, **settings)
            arms.append(arm(family, f"{'KL' if loss == 'kl' else loss}, {label}", change, shared, paper=paper))
    return arms


def table3(family: Family, shared: Change) -> list[Arm]:
    """u, T and the weight, one at a time; as many rates of Retrain as values of T or the weight."""
    arms = [arm(family, BASELINE, method("retrain"), shared)]
    for factor in (0.5, 2.0):

        def other_rate(recipe: Recipe, factor: float = factor) -> Recipe:
            recipe = method("retrain")(recipe)
            return replace(recipe, train=replace(recipe.train, lr=recipe.train.lr * factor))

        about = {"note": f"{factor:g} of the rate", "changes": ("train.lr",)}
        arms.append(arm(family, f"Retrain, lr x {factor:g}", other_rate, shared, **about))
    arms.append(arm(family, "SPEQ", method("speq"), shared))
    recipe = speq_of(recipe_named(family.speq))
    sweeps = {
        "u": ("probability", recipe.probability, (0.25, 0.5, 0.75, 1.0)),
        "T": ("temperature", recipe.temperature, (1.0, 2.0, 4.0)),
        "weight": ("weight", recipe.weight, (0.5, 1.0, 2.0)),
    }
    for label, (name, default, values) in sweeps.items():
        others = [v for v in values if v != default]
        arms += [arm(family, f"SPEQ, {label} = {v:g}", method("speq", **{name: v}), shared) for v in others]
    return arms


def table4(family: Family, shared: Change) -> list[Arm]:
    """Retrain, SPEQ, distillation and the rivals on one network.

    Rivals that are built from their abstracts are a separate group. Apprentice B, whose student starts at random, is
    left out where the float weights come with the network: no file holds them for its teacher.
    """
    qkd = 91.24 if family.speq.startswith(RESNET20) else None
    rows: list[tuple[str, Change, dict[str, Any]]] = [
        ("SPEQ and KD", speq_and_kd, {"note": "SPEQ's settings"}),
        ("Apprentice A", method("apprentice", joint=True), {}),
        (APPRENTICE_B, apprentice_b, {"note": "the student starts at random", "changes": STARTS}),
        ("Apprentice C", method("apprentice"), {}),
        ("QKD", method("qkd"), {"paper": qkd, "note": "the paper's teacher is a larger network"}),
        ("SQAKD", with_ewgs("sqakd"), {"note": "EWGS backward, no labels", "changes": ("quant.ewgs",)}),
        ("SQuaT", with_ewgs("squat"), {"note": "EWGS backward, no labels", "changes": ("quant.ewgs",)}),
        ("QFD", method("qfd"), {}),
        ("GSLR", method("gslr"), {}),
        ("CMT-KD", method("cmt-kd"), {}),
        ("bin regularization", method("bin-regularization"), {"note": "no teacher; weight from a re-implementation"}),
        ("dampening", method("dampening"), {"note": "no teacher"}),
        ("StatsQ", statsq, {"note": "no teacher; weights per channel", "changes": STATISTICS}),
        ("GoR", method("gor"), {"note": ABSTRACT}),
        ("GPLQ", method("gplq", share=1 / 3), {"note": f"{ABSTRACT}; a third of the steps with float weights"}),
        (BASELINE, method("retrain"), {"ours": True}),
        ("block replacement", method("block-replacement"), {"note": ABSTRACT, "ours": True}),
        ("member ensemble", method("member-ensemble"), {"note": ABSTRACT, "ours": True}),
        ("joint bits", method("joint-bits"), {"note": ABSTRACT, "ours": True}),
    ]
    if recipe_named(family.speq).network.pretrained:  # timm's weights: no file holds them for the teacher
        rows = [row for row in rows if row[0] != APPRENTICE_B]
    return table5(family, shared) + [arm(family, label, change, shared, **about) for label, change, about in rows]


def table5(family: Family, shared: Change) -> list[Arm]:
    """Retrain, SPEQ and distillation on ImageNet's networks."""
    return [
        arm(family, BASELINE, method("retrain"), shared, paper=family.retrain),
        arm(family, "Retrain, equal time", lambda r: longer(method("retrain")(r)), shared, **EQUAL_TIME),
        arm(family, "SPEQ", method("speq"), shared, paper=family.paper),
        arm(family, "KD", method("distill", temperature=2.0), shared, note="T = 2"),
    ]


def speq_and_kd(recipe: Recipe) -> Recipe:
    """The float network teaches in addition to SPEQ's teacher, with the settings of the recipe."""
    return replace(recipe, method=speq_distill(recipe).method)


def statsq(recipe: Recipe) -> Recipe:
    """Retrain with weights by StatsQ, one range per output channel, as in its paper."""
    quant = replace(recipe.quant, weight=StatsQ.Settings(), per_channel=True)
    return replace(method("retrain")(recipe), quant=quant)


def with_ewgs(name: str) -> Change:
    """The change to the method `name`, with EWGS in the backward pass."""
    return lambda recipe: replace(method(name)(recipe), quant=replace(recipe.quant, ewgs=0.001))


def apprentice_b(recipe: Recipe) -> Recipe:
    """The float weights teach; the student starts at random."""
    recipe = method("apprentice", teacher=recipe.network.weights)(recipe)
    return replace(recipe, network=replace(recipe.network, weights=None, pretrained=False))
