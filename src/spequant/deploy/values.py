"""How far an engine's values of one output are from the network's, in deviations of the network's."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

LIMITS = {"scores": 0.1, "map": 0.075, "values": 0.075}
"""Deviations that an output may be off by, by its kind: class scores, which have labels; numbers at every position of
images or sequences; other numbers of a sample: regressions, boxes, embeddings, and scores without labels.

Right exports were off by at most 0.037 (ResNet-20 of CIFAR-10 in OpenVINO), and small networks of every kind by 0.066,
maps by 0.021, with biases as trained at 2 bits (docs/deploy.md). What is wrong by a tenth of its scale or by a tenth of
a deviation is off by 0.1 and more."""
MOST = 0.5  # deviations, of a network that is chaotic itself
FEW_SAMPLES = 8  # samples of a channel, below which its own deviation says little
CONSTANT = 1e-6  # of its size: a channel that varies less does not vary


@dataclass
class Values:
    """One output over all batches: `apart` says how far the engine is from the network.

    apart = sqrt(mean over channels of min(1, mean((engine - network)^2) / variance(network))),

    0: equal; 1: nothing in common, as of a constant. A channel is an index of dimension 1, and measured by itself: a
    box and its confidence have numbers of other sizes. One that does not vary is measured by the variance of the
    others, or if none does by the square of its values; with fewer than `FEW_SAMPLES` samples, by the variance of all.

    output: its name. kind: a key of `LIMITS`. unstable: `apart` of the network with other last bits, 0 if not measured.
    largest, mean: of the differences between the engine's values and the network's, in their own unit.
    infinite: (network, engine): how many values are NaN or infinite; these are in no sum.
    """

    output: str
    kind: str
    apart: float = 0.0
    unstable: float = 0.0
    largest: float = 0.0
    mean: float = 0.0
    infinite: tuple[int, int] = (0, 0)
    sums: Tensor = field(default_factory=lambda: torch.zeros(6, 0, dtype=torch.float64), repr=False, compare=False)
    """by channel: samples, mean, sum of squared differences from it, of squared errors of the engine, of the network,
    and the samples of that"""

    @property
    def limit(self) -> float:
        """Of `apart`: that of the kind, or twice the network's own, but never more than `MOST`."""
        return max(LIMITS[self.kind], min(2 * self.unstable, MOST))

    def __str__(self) -> str:
        limit = f"limit of {self.kind} {self.limit:.2g}"
        limit += f", the network's own with other last bits {self.unstable:.2g}" if self.unstable else ""
        return f"{self.output}: {self.apart:.2g} deviations from the network's ({limit})"

    def add(self, expected: Tensor, got: Tensor, moved: Tensor | None = None, padding: Tensor | None = None) -> None:
        """One batch, (samples, channels, ...) or (samples,) each. moved: the network's with other last bits; None: not
        measured on this batch. padding: where True, nothing is compared."""
        used = torch.ones_like(expected, dtype=torch.bool) if padding is None else ~padding
        finite = expected.isfinite(), got.isfinite()
        network, engine = (int((used & ~f).sum()) for f in finite)
        self.infinite = self.infinite[0] + network, self.infinite[1] + engine
        used = _columns(used & finite[0] & finite[1])
        a, b = (torch.where(used, _columns(x).double(), 0.0) for x in (expected, got))
        count = used.sum(1).double()
        before, now, off = float(self.sums[0].sum()), float(count.sum()), (a - b).abs()
        self.largest = max(self.largest, float(off.max())) if off.numel() else self.largest
        self.mean = (self.mean * before + float(off.sum())) / max(1.0, before + now)
        mean = a.sum(1) / count.clamp(min=1)
        squares = torch.where(used, a - mean[:, None], 0.0).square().sum(1)
        errors, unstable, counted = (a - b).square().sum(1), torch.zeros_like(count), torch.zeros_like(count)
        if moved is not None:
            used = used & _columns(moved.isfinite())
            unstable, counted = torch.where(used, a - _columns(moved), 0.0).square().sum(1), used.sum(1).double()
        self.sums = _together(self.sums, torch.stack([count, mean, squares, errors, unstable, counted]))
        errors, unstable, counted = self.sums[3:]
        self.apart = _apart(self.sums[:3], errors)
        self.unstable = _apart(self.sums[:3], unstable * self.sums[0] / counted.clamp(min=1))


def _columns(x: Tensor) -> Tensor:
    """(channels, samples and positions)"""
    return x.reshape(1, -1) if x.dim() == 1 else x.movedim(1, 0).reshape(x.shape[1], -1)


def _together(one: Tensor, other: Tensor) -> Tensor:
    """The sums of both; one may have more channels, of a longer sequence, than the other."""
    width = max(one.shape[1], other.shape[1])
    one, other = (torch.cat([s, s.new_zeros(len(s), width - s.shape[1])], 1) for s in (one, other))
    counts, step = one[0] + other[0], other[1] - one[1]
    share = other[0] / counts.clamp(min=1)
    squares = one[2] + other[2] + step.square() * one[0] * share
    return torch.stack([counts, one[1] + step * share, squares, *(one[3:] + other[3:])])


def _apart(sums: Tensor, off: Tensor) -> float:
    used = sums[0] > 0
    if not used.any():
        return 0.0
    (count, mean, squares), off = sums[:, used], off[used]
    variance, size = squares / count, squares / count + mean.square()
    if count.max() < FEW_SAMPLES:
        centre = (count * mean).sum() / count.sum()
        everywhere = (squares + count * (mean - centre).square()).sum() / count.sum()
        variance = everywhere.expand_as(variance)
    variance = torch.where(variance <= CONSTANT**2 * size, squares.sum() / count.sum(), variance)
    variance = torch.where(variance <= CONSTANT**2 * size.mean(), size.mean(), variance)
    ratio = torch.where(off > 0, off / count / variance, 0.0).clamp(max=1)
    return float(ratio.mean().sqrt())
