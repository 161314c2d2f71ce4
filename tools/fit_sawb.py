#!/usr/bin/env python3
r"""Refit SAWB's coefficients (arXiv 1807.06964), for the level counts too that the literature leaves out.

SAWB takes the clip of a weight tensor from its first two absolute moments, a = c1 sqrt(E w^2) + c2 E|w|. For a grid of
L levels, evenly spaced over [-a, a], and each of several distributions, this script finds the clip a* of least squared
error, and fits by least squares the line

    a* / E|w| = c1 sqrt(E w^2) / E|w| + c2.

Every expectation is exact: over one cell of the quantizer, E (w - q)^2 needs only the mass and the first moment of the
cell, and both have closed forms for the distributions used here. Nothing is sampled.

Distributions: the paper fits over Gauss, uniform, Laplace, logistic, triangle and von Mises. Bounded ones pull the
slope towards shapes that weights do not have: from 4 bits on their a* is the edge of their support, whatever the line
through the others says. Here it is the generalized Gaussian, p ~ exp(-|w|^beta), at beta = 1 (Laplace), 1.25, 1.5, 1.75
and 2 (Gauss), the shapes between which trained weights lie: there the refit costs at most EXCESS_BOUND more squared
error than the best clip, at every L below. No line serves everything: logistic has moments like beta = 1.6 but a longer
tail, and pays 4 % at L = 32, 9 % at 63; uniform, as layers start, pays 6 to 20 % up to 8 levels, and at 255 its squared
error is 75 times the least with the refit, 400 times with the published line. So the library takes published lines up
to 16 levels alone, beyond them the largest weight, or where that loses much the clip of least squared error of the very
weight; the refit is a measurement.
Fitted over PAPER_SET, the same code gives the coefficients of the authors' later code for 4 levels (3.12, -2.064).

usage: fit_sawb.py     (a minute at most on one core; prints a Markdown table and a dict literal)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import gamma, gammainc

LEVELS = (3, 4, 7, 8, 15, 16, 31, 32, 63, 127, 255)
EXCESS_BOUND = 0.005  # of FIT_SET, over LEVELS; tests/tools/test_fit_sawb.py holds it
PUBLISHED = {
    3: (2.587, -1.693),
    4: (3.212, -2.178),
    8: (7.509, -6.892),
    15: (12.035, -12.03),
    16: (12.68, -12.80),
    32: (17.74, -18.64),
    127: (28.24, -30.81),
    255: (31.76, -35.04),
}


@dataclass(frozen=True)
class Distribution:
    """A symmetric distribution, given by its moments and the partial moments of |w|.

    `mass(t)` is P(|w| < t), `first(t)` is E[|w|; |w| < t]; both take and return arrays.
    """

    name: str
    mass: Callable[[np.ndarray], np.ndarray]
    first: Callable[[np.ndarray], np.ndarray]
    mean_abs: float
    mean_square: float

    @property
    def shape(self) -> float:
        """sqrt(E w^2) / E|w|: 1.155 uniform, 1.253 Gauss, 1.414 Laplace."""
        return float(np.sqrt(self.mean_square)) / self.mean_abs


def generalized_gaussian(beta: float, name: str) -> Distribution:
    """Density ~ exp(-|w|^beta); |w|^beta is gamma distributed, so partial moments are incomplete gamma functions."""
    mean_abs = float(gamma(2 / beta) / gamma(1 / beta))
    return Distribution(
        name,
        mass=lambda t: gammainc(1 / beta, t**beta),
        first=lambda t: mean_abs * gammainc(2 / beta, t**beta),
        mean_abs=mean_abs,
        mean_square=float(gamma(3 / beta) / gamma(1 / beta)),
    )


def logistic() -> Distribution:
    """Density exp(-w) / (1 + exp(-w))^2."""
    return Distribution(
        "logistic",
        mass=lambda t: np.tanh(t / 2),
        first=lambda t: 2 * (np.log(2) - np.log1p(np.exp(-t)) - t / (1 + np.exp(t))),
        mean_abs=2 * float(np.log(2)),
        mean_square=float(np.pi**2 / 3),
    )


def uniform() -> Distribution:
    """Constant density on [-1, 1]."""
    return Distribution("uniform", lambda t: np.minimum(t, 1), lambda t: np.minimum(t, 1) ** 2 / 2, 1 / 2, 1 / 3)


def triangle() -> Distribution:
    """Density 1 - |w| on [-1, 1]."""

    def mass(t: np.ndarray) -> np.ndarray:
        t = np.minimum(t, 1)
        return 2 * t - t**2

    def first(t: np.ndarray) -> np.ndarray:
        t = np.minimum(t, 1)
        return t**2 - 2 * t**3 / 3

    return Distribution("triangle", mass, first, 1 / 3, 1 / 6)


GAUSS = generalized_gaussian(2.0, "Gauss")
LAPLACE = generalized_gaussian(1.0, "Laplace")
FIT_SET = (LAPLACE, *(generalized_gaussian(b, f"beta {b}") for b in (1.25, 1.5, 1.75)), GAUSS)
PAPER_SET = (GAUSS, uniform(), LAPLACE, logistic(), triangle())  # von Mises, between Gauss and uniform, left out


def squared_error(dist: Distribution, levels: int, clip: float) -> float:
    """E (w - q(w))^2 with q the nearest of `levels` evenly spaced values over [-clip, clip]."""
    values = clip * np.arange((levels + 1) % 2, levels, 2) / (levels - 1)  # those >= 0, half of a symmetric grid
    edges = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2])
    mass = np.diff(dist.mass(edges), append=1.0)
    first = np.diff(dist.first(edges), append=dist.mean_abs)
    return float(dist.mean_square - 2 * values @ first + values**2 @ mass)


def best_clip(dist: Distribution, levels: int) -> float:
    """The clip of least squared error: a coarse scan, since the error may have several minima, then Brent's method."""
    scan = dist.mean_abs * np.geomspace(0.5, 40, 200)
    at = int(np.argmin([squared_error(dist, levels, a) for a in scan]))
    bounds = (scan[max(at - 1, 0)], scan[min(at + 1, len(scan) - 1)])
    found = minimize_scalar(lambda a: squared_error(dist, levels, a), bounds=bounds, method="bounded")
    return float(found.x)


def fit(levels: int, distributions: tuple[Distribution, ...] = FIT_SET) -> tuple[float, float]:
    """Least-squares c1 and c2 over `distributions`."""
    ratio = [best_clip(d, levels) / d.mean_abs for d in distributions]
    c1, c2 = np.polyfit([d.shape for d in distributions], ratio, 1)
    return float(c1), float(c2)


def sawb_clip(dist: Distribution, coefficients: tuple[float, float]) -> float:
    """SAWB's a = c1 sqrt(E w^2) + c2 E|w|."""
    c1, c2 = coefficients
    return dist.mean_abs * (c1 * dist.shape + c2)


def excess_error(dist: Distribution, levels: int, coefficients: tuple[float, float]) -> float:
    """Squared error with SAWB's clip over that with the best clip, less one (0.01 is one per cent more)."""
    best = squared_error(dist, levels, best_clip(dist, levels))
    return squared_error(dist, levels, sawb_clip(dist, coefficients)) / best - 1


def main() -> None:
    """Print the comparison as a Markdown table, then the refitted coefficients as a dict literal."""
    judges = (GAUSS, FIT_SET[2], LAPLACE, uniform())
    titles = [f"{d.name} {which}" for which in ("refit", "publ.") for d in judges]
    print("Excess squared error over the best clip, in per cent:\n")
    print("| L | c1 | c2 | published c1 | c2 |", " | ".join(titles), "|")
    print("|" + "---|" * (5 + len(titles)))
    refitted = {}
    for levels in LEVELS:
        refitted[levels] = tuple(round(c, 3) for c in fit(levels))
        known = PUBLISHED.get(levels)
        cells = [str(levels), *map(str, refitted[levels]), *(map(str, known) if known else ("", ""))]
        for coefficients in (refitted[levels], known):
            cells += [f"{100 * excess_error(d, levels, coefficients):.2f}" if coefficients else "" for d in judges]
        print("|", " | ".join(cells), "|")
    print("\nREFITTED = {")
    for levels, (c1, c2) in refitted.items():
        print(f"    {levels}: ({c1}, {c2}),")
    print("}")


if __name__ == "__main__":
    main()
