"""fig2: in which order layers gain most from 8-bit activations, and how soft labels change with the width."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spequant.data import ImageSet
from spequant.layers import act_quantizers
from spequant.methods.losses import cosine
from spequant.policies import Fixed, LowBit, precision
from spequant.train import evaluate

HIGH = 8


@dataclass(frozen=True)
class Step:
    """layers raised so far, the last one raised, accuracy in per cent and mean loss with them."""

    raised: int
    layer: str
    accuracy: float
    loss: float


def greedy_order(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> list[Step]:
    """Raise one low-bit activation after another to 8 bits, each time the one that leaves the least loss, from none to
    all. `images` as the network takes them, (n, channels, height, width); `labels` int64 (n,)."""
    widths = {name: q.bits for name, q in act_quantizers(model).items()}
    low = [name for name, bits in widths.items() if bits == min(b for b in widths.values() if b is not None)]
    raised: list[str] = []
    steps = [Step(0, "", *_measure(model, raised, images, labels, batch))]
    while len(raised) < len(low):
        tries = {name: _measure(model, [*raised, name], images, labels, batch) for name in low if name not in raised}
        best = min(tries, key=lambda name: tries[name][1])
        raised.append(best)
        steps.append(Step(len(raised), best, *tries[best]))
    return steps


def _measure(
    model: nn.Module, raised: Sequence[str], images: Tensor, labels: Tensor, batch: int
) -> tuple[float, float]:
    with precision(model, Fixed(dict.fromkeys(raised, HIGH))):
        found = evaluate(model, zip(images.split(batch), labels.split(batch), strict=True))
    return found.accuracy, found.loss


@torch.no_grad()
def soft_labels(model: nn.Module, images: Tensor, labels: Tensor, widths: Sequence[int]) -> list[dict[str, Any]]:
    """At each activation width: mean confidence (largest probability), entropy in nats, accuracy, and 1 - cosine to the
    soft labels at 8 bits."""
    model.eval()
    logits = {}
    for bits in dict.fromkeys([*widths, HIGH]):
        with precision(model, LowBit(bits)):
            logits[bits] = torch.cat([model(x).float() for x in images.split(500)])
    rows = []
    for bits in widths:
        p = logits[bits].softmax(1)
        rows.append(
            {
                "activations": bits,
                "confidence": float(p.amax(1).mean()),
                "entropy": float(-(p * p.clamp_min(1e-12).log()).sum(1).mean()),
                "accuracy": float((p.argmax(1) == labels).float().mean()) * 100,
                "distance to 8 bits": float(cosine(logits[bits], logits[HIGH])),
            }
        )
    return rows


def held_or_test(data: ImageSet, most: int) -> tuple[Tensor, Tensor]:
    """The first `most` images of a set, as networks take them, and their labels."""
    count = min(most, len(data))
    return data.normalise(data.images[:count]), data.labels[:count]
