"""fig2: in which order layers gain most from 8-bit activations, and how soft labels change with the width."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spequant.app.recipes.training import device_named
from spequant.app.runs.images import Images, measure
from spequant.app.studies.arms import BASELINE, facts_of_runs
from spequant.app.studies.page import StudyReport
from spequant.app.studies.pictures import draw_lines
from spequant.app.studies.tables import method
from spequant.app.studies.workshop import Workshop, about_one, low_bits
from spequant.data import ImageSet, eval_batches
from spequant.layers import act_quantizers
from spequant.methods.losses import cosine
from spequant.policies import Fixed, LowBit, precision

TEACHER_BITS = 8
GREEDY_IMAGES = 2000
"""on which each measurement of the greedy choice runs the network"""


def fig2(shop: Workshop) -> StudyReport:
    """The order in which layers raised to 8 bits gain most; soft labels by width."""
    network = low_bits(shop, {BASELINE: method("retrain")}, shop.seeds[:1])[BASELINE]
    recipe, model = shop.finished(network.folder)
    images = Images(recipe, device_named(recipe.train.device))
    data = (images.test if images.held_out is None else images.held_out).part(slice(0, GREEDY_IMAGES))
    with shop.phase("raising layers to 8 bits, one after another"):
        order = greedy_order(model, data)
        soft = soft_label_rows(model, data, shop.widths)
    rows = [{**vars(step), "loss": f"{step.loss:.4f}", "command": network.command} for step in order]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        draw_lines(left, {"accuracy": [(step.raised, [step.accuracy]) for step in order]})
        left.set_xlabel("layers with 8-bit activations, greedily chosen")
        left.set_ylabel("accuracy, %")
        names = ("confidence", "distance to 8 bits")
        draw_lines(right, {name: [(row["activations"], [row[name]]) for row in soft] for name in names}, digits=2)
        right.set_xticks([row["activations"] for row in soft])
        right.set_xlabel("activation bits of all layers")
        right.set_ylabel("of soft labels, 0 to 1")

    about = (
        f"{about_one(shop)} {len(data)} {'test' if images.held_out is None else 'held-out'} images, chosen by the loss."
    )
    title, facts = "Greedy order of layers, and soft labels (figure 2)", facts_of_runs([network.folder])
    return StudyReport(title, about, rows, draw, facts, {"soft labels": soft})


@dataclass(frozen=True)
class GreedyStep:
    """A step of the greedy order.

    Args:
        raised: the number of layers raised so far.
        layer: the last one raised, "" before the first.
        accuracy: of the network then, %.
        loss: its mean cross-entropy, nats.
    """

    raised: int
    layer: str
    accuracy: float
    loss: float


def greedy_order(model: nn.Module, data: ImageSet) -> list[GreedyStep]:
    """Raise one low-bit activation after another to 8 bits, from none to all.

    Args:
        model: a prepared network.
        data: images and labels; each step takes the activation that leaves the least loss on them.

    Returns:
        One step per number of raised activations, the first one without any.
    """
    widths = {name: q.bits for name, q in act_quantizers(model).items()}
    low = [name for name, bits in widths.items() if bits == min(b for b in widths.values() if b is not None)]

    def step(*raised: str) -> GreedyStep:
        with precision(model, Fixed(dict.fromkeys(raised, TEACHER_BITS))):
            evaluation = measure(model, data)
        return GreedyStep(len(raised), raised[-1] if raised else "", evaluation.accuracy, evaluation.loss)

    steps = [step()]
    while len(steps) <= len(low):
        raised = [s.layer for s in steps[1:]]
        steps.append(min((step(*raised, name) for name in low if name not in raised), key=lambda s: s.loss))
    return steps


@torch.no_grad()
def soft_label_rows(model: nn.Module, data: ImageSet, widths: Sequence[int]) -> list[dict[str, Any]]:
    """What the soft labels of `model` on `data` are at each activation width.

    Returns:
        One row per width: mean confidence (the largest probability), entropy in nats, accuracy in %, and 1 - cosine to
        the soft labels at 8 bits.
    """
    model.eval()
    logits = {}
    for bits in dict.fromkeys([*widths, TEACHER_BITS]):
        with precision(model, LowBit(bits)):
            logits[bits] = torch.cat([model(images).float() for images, _ in eval_batches(data, 500)])
    rows = []
    for bits in widths:
        p = logits[bits].softmax(1)
        rows.append(
            {
                "activations": bits,
                "confidence": float(p.amax(1).mean()),
                "entropy": float(-(p * p.clamp_min(1e-12).log()).sum(1).mean()),
                "accuracy": float((p.argmax(1) == data.labels).float().mean()) * 100,
                "distance to 8 bits": float(cosine(logits[bits], logits[TEACHER_BITS])),
            }
        )
    return rows
