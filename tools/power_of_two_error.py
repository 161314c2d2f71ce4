#!/usr/bin/env python3
"""Squared errors of Gaussian values with a power of two as step, in multiples of that with the best free step.

usage: power_of_two_error.py     prints a Markdown table; the rows are means over scales of the values

The step is the nearest power of two to the best free one, the next one above it, or the better of its neighbours.
"""

import torch
from torch import Tensor

from spequant.functional import fake_quantize, nearest_power, power_above

VALUES, SCALES, STEPS = 20_000, 24, 900


def error(x: Tensor, step: Tensor, bits: int) -> float:
    """The mean squared error on the grid of 2^bits - 1 levels around zero."""
    high = step * (2 ** (bits - 1) - 1)
    levels = torch.tensor(2.0**bits - 1)
    return float((fake_quantize(x, -high, high, levels) - x).square().mean())


def row(bits: int) -> list[float]:
    """The means of (nearest, above, better), in multiples of the error at the best of `STEPS` steps."""
    x = torch.randn(VALUES, generator=torch.Generator().manual_seed(0))
    steps = torch.logspace(-3, 1, STEPS) / (2 ** (bits - 1) - 1) ** 0.5
    errors = torch.tensor([error(x, step, bits) for step in steps])
    best, least = steps[errors.argmin()], float(errors.min())
    sums = [0.0, 0.0, 0.0]
    for scale in 2 ** (torch.arange(SCALES) / SCALES):
        above = power_above(best * scale)
        near = [error(x * scale, step, bits) for step in (nearest_power(best * scale), above, above / 2)]
        for i, value in enumerate((near[0], near[1], min(near))):
            sums[i] += value / float(scale) ** 2 / least / SCALES
    return sums


if __name__ == "__main__":
    print("| bits | nearest | above | better |\n|---|---|---|---|")
    for bits in (2, 3, 4, 6, 8):
        print("|", bits, "|", " | ".join(f"{value:.2f}" for value in row(bits)), "|", flush=True)
