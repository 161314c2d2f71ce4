"""The literal twin of `spequant.data.soft_labels`: one sample, one class after another."""

import math

import numpy as np
from torch import Tensor

from reference.augment import augment


def softmax(row, temperature):
    largest = max(row)
    shares = [math.exp((z - largest) / temperature) for z in row]
    return [share / sum(shares) for share in shares]


def stored(row, top, temperature):
    """(classes, codes) of one sample: the `top` largest shares, and the sum of the others behind them."""
    shares = softmax(row, temperature)
    classes = sorted(range(len(row)), key=lambda c: -shares[c])[:top]
    others = sum(share for c, share in enumerate(shares) if c not in classes)
    return classes, [round(255 * math.sqrt(share)) for share in [*(shares[c] for c in classes), others]]


def read(classes, codes, count):
    """The shares of one sample: what stands in the file for its classes, the rest evenly for the others."""
    *own, others = [max(code, 0.25) ** 2 for code in codes]
    shares = [others / (count - len(classes)) if c not in classes else own[classes.index(c)] for c in range(count)]
    return [share / sum(shares) for share in shares]


def crops(images: Tensor, padding: int, flip: bool, seed: int, slot: int) -> Tensor:
    """The crops of a slot, in the order of the images."""
    return augment(images, padding, flip, np.random.default_rng((seed, slot)))
