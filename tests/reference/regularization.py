"""Literal numpy twins of the losses on float weights: one weight, one bin after another."""

import numpy as np


def bin_regularization(w, codes, levels):
    """Sum over levels of (mean - level)^2 + variance of the weights with its code; codes: whole numbers, as w."""
    total = 0.0
    for code, level in enumerate(levels):
        members = [value for value, c in zip(w.flatten(), codes.flatten(), strict=True) if c == code]
        if members:
            mean = sum(members) / len(members)
            total += (mean - level) ** 2 + sum((value - mean) ** 2 for value in members) / len(members)
    return total


def dampening(w, levels):
    """Sum over the first axis, mean over the others, of the squared distance from the clipped weight to its level."""
    low, high = min(levels), max(levels)
    columns = w.reshape(len(w), -1)
    sums = np.zeros(columns.shape[1])
    for row in columns:
        for j, value in enumerate(row):
            clipped = min(max(value, low), high)
            nearest = min(levels, key=lambda level: abs(level - clipped))
            sums[j] += (nearest - clipped) ** 2
    return sums.mean()


def dampening_weight(last, start, call, calls):
    """lambda: 0 up to the share `start` of the calls, then along half a cosine to `last`."""
    share = call / calls
    return 0.0 if share < start else last * (1 - np.cos(np.pi * (share - start) / (1 - start))) / 2
