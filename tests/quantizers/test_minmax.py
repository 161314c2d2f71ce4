"""MinMax: the largest magnitude, or a percentile of it, as the end of the range."""

import numpy as np
import pytest

from reference import quantizers as literal
from spequant.quantizers import MinMax, least_squares
from support.quantizing import close, tensors


def test_a_weights_range_ends_at_the_largest_magnitude_or_a_percentile():
    w, leaf, _ = tensors()
    close(MinMax(4, of_weight=True)(leaf), literal.symmetric(w, np.abs(w).max(), 4))
    clip = np.sort(np.abs(w))[round(0.99 * len(w)) - 1]
    close(MinMax(4, percentile=99, of_weight=True)(leaf), literal.symmetric(w, clip, 4))


def test_an_activations_range_follows_the_percentile_and_not_the_rule_of_calibrate():
    x, leaf, _ = tensors()
    q = MinMax(8, percentile=99, signed=True)
    q.fit(leaf, least_squares)
    assert float(q.clip) == pytest.approx(np.sort(np.abs(x))[round(0.99 * len(x)) - 1])


def test_a_percentile_out_of_range_is_refused():
    with pytest.raises(ValueError, match="percentile is 101"):
        MinMax(8, percentile=101)
