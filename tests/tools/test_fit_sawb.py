"""The refit of SAWB's coefficients, against samples, textbook values and the authors' own fit."""

import numpy as np
import pytest

from fit_sawb import (
    EXCESS_BOUND,
    FIT_SET,
    GAUSS,
    LAPLACE,
    LEVELS,
    PAPER_SET,
    best_clip,
    excess_error,
    fit,
    logistic,
    squared_error,
    triangle,
    uniform,
)


def _sampled_error(w: np.ndarray, levels: int, clip: float) -> float:
    """Mean squared error of SAWB's quantizer, literally as in the paper."""
    u = np.clip(w / clip, -1, 1) / 2 + 1 / 2
    quantized = (2 * np.round(u * (levels - 1)) / (levels - 1) - 1) * clip
    return float(np.mean((w - quantized) ** 2))


def test_best_clip_of_a_gaussian_at_4_levels_is_what_a_search_on_samples_finds():
    w = np.random.default_rng(0).standard_normal(200_000)
    clips = np.linspace(1.3, 1.7, 81)
    searched = clips[np.argmin([_sampled_error(w, 4, a) for a in clips])]
    exact = best_clip(GAUSS, 4) * np.sqrt(2)  # GAUSS has density ~ exp(-w^2): standard deviation 1/sqrt(2)
    assert exact == pytest.approx(searched, abs=0.02)
    assert exact == pytest.approx(1.5 * 0.9957, abs=2e-4)  # Max 1960: the best step of 4 levels is 0.9957 sigma


@pytest.mark.parametrize("levels", [3, 4, 31])
@pytest.mark.parametrize(
    ("dist", "draw"),
    [
        (GAUSS, lambda rng, n: rng.normal(0, np.sqrt(0.5), n)),
        (LAPLACE, lambda rng, n: rng.laplace(0, 1, n)),
        (logistic(), lambda rng, n: rng.logistic(0, 1, n)),
        (uniform(), lambda rng, n: rng.uniform(-1, 1, n)),
        (triangle(), lambda rng, n: rng.triangular(-1, 0, 1, n)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_exact_error_is_the_error_on_samples(dist, draw, levels):
    w = draw(np.random.default_rng(1), 400_000)
    clip = 2.5 * dist.mean_abs
    assert squared_error(dist, levels, clip) == pytest.approx(_sampled_error(w, levels, clip), rel=0.05)
    assert dist.mean_square == pytest.approx(np.mean(w**2), rel=0.02)
    assert dist.mean_abs == pytest.approx(np.mean(np.abs(w)), rel=0.01)


def test_over_the_papers_distributions_the_fit_is_the_authors():
    assert fit(4, PAPER_SET) == pytest.approx((3.12, -2.064), abs=0.01)


@pytest.mark.parametrize("levels", LEVELS)
def test_refit_stays_near_the_best_clip(levels):
    coefficients = fit(levels)
    for dist in FIT_SET:
        assert 0 <= excess_error(dist, levels, coefficients) + 1e-9 < EXCESS_BOUND, dist.name
