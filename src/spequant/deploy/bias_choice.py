"""Which of the biases that integers have a layer gets: one with which engines that round in different ways agree.

A bias moves all sums of a channel past all steps between two codes. Where one of 255 steps lies so close to a sum that
engines put that on different sides (`requantization.py`), at another bias, less than a step between two sums away, none
may. At 4 bits, into an 8-bit addend, the nearest bias did in 6 of 10 channels, one at most four codes farther in 99 of
100; so many codes are an eighth of an output code.
"""

from collections.abc import Sequence

import numpy as np

from spequant.deploy.integers import Integers
from spequant.deploy.operations import Weighted
from spequant.deploy.requantization import agreement, factor_of, rounding_steps, spread_of

CROWDED = 5
"""Steps for each unit between two sums, at which no bias will do."""


def agreeing_biases(ops: Sequence[Weighted], channels: int) -> np.ndarray:
    """What to add to the int32 biases of a layer, so that all engines have the twin's code for every sum.

    Args:
        ops: the layer, to codes; more than one where several quantizers read its result.
        channels: numbers of the layer's bias, each of which several outputs may share, one after the other.

    Returns:
        int64 (channels,): the least that is enough, at most half of what sums are apart; 0 where nothing is.
    """
    moved, rows = np.zeros(channels, np.int64), np.arange(channels)
    if not ops or any(bool((op.integers.scale <= 0).any()) for op in ops):
        return moved
    apart = np.min([_apart(op).reshape(channels, -1).min(1) for op in ops], axis=0)
    rows = rows[apart * min(map(spread_of, ops)) * CROWDED > max(op.grid.high - op.grid.low for op in ops if op.grid)]
    for off in sorted(range(-int(apart.max()) // 2, int(apart.max()) // 2 + 1), key=abs):
        rows = rows[2 * abs(off) <= apart[rows]]
        if not len(rows):
            break
        agree = np.all([_agree(op, rows, off, channels) for op in ops], axis=0)
        moved[rows[agree]] = off
        rows = rows[~agree]
    return moved


def _apart(op: Weighted) -> np.ndarray:
    """How far sums are apart, of each output."""
    return np.maximum(np.gcd.reduce(op.integers.weight.flatten(1).numpy().astype(np.int64), axis=1), 1)


def _agree(op: Weighted, rows: np.ndarray, off: int, channels: int) -> np.ndarray:
    """Whether all engines step as the twin, in each of `rows` of its channels, with `off` added to the bias."""
    assert op.grid is not None
    form, factor = op.integers, factor_of(op)
    outputs = np.arange(len(factor)).reshape(channels, -1)[rows].reshape(-1)
    there = Integers(form.weight[outputs], form.bias[outputs] + off, form.scale[outputs])
    s = rounding_steps(there, factor[outputs], (op.source.low, op.source.high), op.grid.low, op.grid.high)
    return np.all(agreement(s.times(spread_of(op))).reshape(len(rows), -1), axis=1, keepdims=False)
