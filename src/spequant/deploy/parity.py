"""The verdict on a comparison: whether an engine answers as the network that was trained. Comparing: `compare.py`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spequant.deploy.processor import clips
from spequant.deploy.values import CONSTANT, LIMITS, Values
from spequant.names import some_of

AGREEMENT = 0.995
"""Share of equal answers below which an export is refused."""
POINTS = 0.1
"""Points of accuracy that it may differ by."""
FEW_ANSWERS = 2
"""Images that may differ in any case, ties, but no more than half of them."""
NEAR_TIE = 0.25
"""Deviations of the network's values that a single one an image, which has no arg-max, may be off by."""

ParityBatch = tuple[Any, Any, Tensor | None]
"""(what the network is given, what the engine is given, labels); tensor and array, or both by name"""


@dataclass
class CodeCount:
    """Codes of one op: how many there are, and how many are others than the twin's and the network's, end to end.

    torch: None where no layer of the network reads these codes, or one that is called more than once. forced, ties: of
    `Forced`, on the first images.
    """

    name: str
    count: int = 0
    twin: int = 0
    torch: int | None = None
    forced: int = 0
    ties: int = 0


@dataclass
class Parity:
    """What came of a comparison; its str says it in short, the verdict first.

    images; equal: of them with the same answer: the same arg-max over dimension 1, or where that holds one number, the
    value within `NEAR_TIE`. Where a network answers several questions an image or sentence, or at every position, each
    counts as an image. Without labels nothing says that the largest is the answer (of boxes, colours), so that two
    answers count as one where the network puts them no farther apart than values may be off by (`LIMITS`).

    values: of each output, how far all its numbers are from the network's, and the limit of that. right: (network,
    engine) of those with labels; codes by op.

    unstable: images that the network itself answers otherwise where its float values change by their last bits, of
    `looked_at` images: of all with inputs by name, else of the first ones.
    choices: whether the largest number is the answer, as of classes; None: it is where there are labels, or inputs
    with names. Of values (regression, boxes) not the answers are told, but how far they are off.
    saturating: layers whose sums of products may pass 16 bits, to which some processors clip them.
    off_grid: layers whose biases `quantize_biases` would move.
    """

    images: int = 0
    equal: int = 0
    unstable: int = 0
    looked_at: int = 0
    labelled: int = 0
    right: tuple[int, int] = (0, 0)
    codes: list[CodeCount] = field(default_factory=list)
    saturating: list[str] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)
    off_grid: list[str] = field(default_factory=list)
    choices: bool | None = None
    by_name: bool = field(default=False, repr=False)

    @property
    def agreement(self) -> float:
        return self.equal / max(1, self.images)

    @property
    def accuracy(self) -> tuple[float, float]:
        """(network, engine), per cent."""
        network, engine = (100 * n / max(1, self.labelled) for n in self.right)
        return network, engine

    @property
    def of_choices(self) -> bool:
        """`choices`, or what is taken for it."""
        return bool(self.labelled or self.by_name or not self.values) if self.choices is None else self.choices

    @property
    def answers(self) -> str:
        """In words: the share of equal answers, or of values how far they are off."""
        if self.of_choices:
            return f"{100 * self.agreement:.2f} % of {self.images:,} images with the same answer"
        differ = "; ".join(f"{v.output} by at most {v.largest:.3g}, {v.mean:.3g} in the mean" for v in self.values)
        if self.choices is None:  # classes or values: who called knows
            share = f"{100 * self.agreement:.2f} % of {self.images:,} samples with the same largest output"
            return f"{share}; values differ: {differ}"
        return f"values of {self.images:,} samples differ: {differ}"

    def add(
        self,
        expected: Tensor,
        got: np.ndarray,
        labels: Tensor | None,
        moved: Tensor | None = None,
        *,
        output: str = "output",
        padding: Tensor | None = None,
        choices: bool = True,
    ) -> None:
        """One batch of an output: (samples,), (samples, channels) or (samples, channels, ...), the network's and the
        engine's. labels: whole numbers, one an answer; others are left out. moved: the network's with other last bits.
        padding: where True, nothing is compared. choices: whether the largest number is the answer though there are no
        labels, but `moved`. ValueError: another shape."""
        a, b = expected.detach().float().cpu(), torch.from_numpy(np.asarray(got)).float()
        moved = None if moved is None else moved.detach().float().cpu()
        if a.shape != b.shape:
            raise ValueError(f"{output} has the shape {tuple(b.shape)} in the engine; expected {tuple(a.shape)}")
        several = a.dim() > 1 and a.shape[1] > 1
        answers = (len(a), *a.shape[2:]) if several else ()
        if labels is not None and (labels.is_floating_point() or tuple(labels.shape) != answers):
            labels = None
        values = self._values(output, a, labels)
        values.add(a, b, moved, padding)
        if padding is not None:
            a, b = a.masked_fill(padding, -inf), b.masked_fill(padding, -inf)
            moved = None if moved is None else moved.masked_fill(padding, -inf)
        differ = _other_answers if several else _other_values
        choices = choices and moved is not None
        apart = NEAR_TIE if not several else LIMITS[values.kind] if labels is None and not choices else 0.0
        other = differ(a, b, apart)
        self.images += other.numel()
        self.equal += int((~other).sum())
        if moved is not None:
            self.unstable += int(differ(a, moved, apart).sum())
            self.looked_at += other.numel()
        self.by_name |= several and choices
        if labels is not None:
            network, engine = (int((x.argmax(1) == labels.cpu()).sum()) for x in (a, b))
            self.labelled += labels.numel()
            self.right = self.right[0] + network, self.right[1] + engine

    def _values(self, output: str, x: Tensor, labels: Tensor | None) -> Values:
        values = next((v for v in self.values if v.output == output), None)
        if values is None:
            values = Values(output, "scores" if labels is not None else "map" if x.dim() > 2 else "values")
            self.values.append(values)
        return values

    def check(self, engine: str) -> None:
        """ValueError: a value that is NaN or infinite; an op that computes other codes; more answers that differ than
        `AGREEMENT` leaves, or twice as many as the network's own do with other last bits; accuracies apart by more than
        `POINTS`; an output whose values are farther from the network's than its `Values.limit`."""
        for fault in self._faults(engine):
            raise ValueError(fault)

    def _faults(self, engine: str) -> Iterator[str]:
        for v in self.values:
            for who, count in zip(("the network", engine), v.infinite, strict=True):
                if count:
                    yield (
                        f"{count} values of {v.output} are NaN or infinite in {who}; expected finite ones: look for "
                        "them in the images, and in the network's weights and ranges"
                    )
        wrong = [f"{c.name} ({c.forced - c.ties})" for c in self.codes if c.forced > c.ties]
        if wrong:  # NaN has no code, so that it comes first
            yield f"{engine} computes other codes than the integer twin in {', '.join(wrong)}{self._clipped()}"
        if not self.images:
            yield f"nothing was compared with {engine}; expected at least one image"
        few = min(FEW_ANSWERS, self.images // 2)
        advice = self._biases() + self._clipped()
        unstable = self.unstable * self.images // max(1, self.looked_at)
        if self.images - self.equal > max(few, (1 - AGREEMENT) * self.images, 2 * unstable):
            twice = f", or twice the {unstable} on which the network does with other last bits" if unstable else ""
            yield (
                f"{engine} gives another arg-max (of one number: another value) than the network on "
                f"{self.images - self.equal} of {self.images} images; expected at most {100 * (1 - AGREEMENT):.1f} %, "
                f"or {few}{twice}{advice}"
            )
        if abs(self.right[0] - self.right[1]) > max(FEW_ANSWERS, POINTS / 100 * self.labelled):
            network, other = self.accuracy
            right = f"{engine} is right on {other:.2f} %, the network on {network:.2f} %"
            yield f"{right}; expected at most {POINTS} points"
        for v in self.values:
            if v.apart > v.limit:
                yield (
                    f"{engine}'s values of {v.output} are {v.apart:.2g} deviations from the network's; expected at "
                    f"most {v.limit:.2g} of {v.kind}{advice}"
                )

    def __str__(self) -> str:
        fault = next(self._faults("the engine"), None)
        lines = [f"refused: {fault}" if fault else f"the engine answers as the network: {self.answers}"]
        lines += [self.answers] if fault else []
        lines += [str(v) for v in self.values]
        if self.unstable:
            lines.append(f"the network's own with other last bits differs on {self.unstable:,} of {self.looked_at:,}")
        if self.labelled:
            lines.append("accuracy: {1:.2f} %, the network's {0:.2f} %".format(*self.accuracy))
        if self.codes:
            count, twin, ties = (sum(getattr(c, name) for c in self.codes) for name in ("count", "twin", "ties"))
            forced = sum(c.forced for c in self.codes)
            lines.append(
                f"codes: {len(self.codes)} ops, {twin:,} of {count:,} other than the integer twin's end to end; forced "
                f"{forced:,}, {ties:,} of them ties"
            )
        if self.saturating:
            lines.append(f"sums that some processors clip: {some_of(self.saturating)}")
        return "\n".join(lines)

    def _biases(self) -> str:
        if not self.off_grid:
            return ""
        return (
            f". Biases of {some_of(self.off_grid)} lie between the codes of integer arithmetic: call "
            "spequant.deploy.quantize_biases before measuring and exporting"
        )

    def _clipped(self) -> str:
        """What this processor may have to do with it."""
        if not self.saturating or not clips():
            return ""
        return (
            ". This processor has neither VNNI nor dot products and clips sums of 8-bit products to 16 bits, as in "
            f"{some_of(self.saturating)}: export on one that has them, or train the inputs of these layers at 7 "
            "bits (--quant.end-bits 7)"
        )


def _other_answers(a: Tensor, b: Tensor, apart: float) -> Tensor:
    """Where the arg-max of `b` is another than that of `a`; if `apart` is not 0, one so many deviations below it."""
    first, second = a.argmax(1, keepdim=True), b.argmax(1, keepdim=True)
    other = first != second
    if apart:
        other &= a.gather(1, first) - a.gather(1, second) > apart * _deviation(a)
    return other.squeeze(1)


def _other_values(a: Tensor, b: Tensor, apart: float) -> Tensor:
    return ~((a - b).abs() <= apart * _deviation(a))


def _deviation(x: Tensor) -> Tensor:
    """Of all values; where they do not vary, their size."""
    deviation, size = x.std() if x.numel() > 1 else x.new_zeros(()), x.abs().max()
    return torch.where(deviation > CONSTANT * size, deviation, size)
