"""MinMax: the largest magnitude, or a percentile of it, as the end of the range."""

import numpy as np
import pytest

from reference import quantizers as literal
from spequant.quantizers import MinMax, least_squares
from support.quantizing import close, tensors


def test_weights_end_at_the_largest_magnitude_or_a_percentile_of_them():
    w, leaf, _ = tensors()
    close(MinMax(4, of_weight=True)(leaf), literal.symmetric(w, np.abs(w).max(), 4))
    clip = np.sort(np.abs(w))[round(0.99 * len(w)) - 1]
    close(MinMax(4, percentile=99, of_weight=True)(leaf), literal.symmetric(w, clip, 4))


def test_activations_keep_what_its_own_rule_found():
    x, leaf, _ = tensors()
    stored = MinMax(8, percentile=99, signed=True)
    stored.fit(leaf, least_squares)  # its own rule wins
    assert float(stored.clip) == pytest.approx(np.sort(np.abs(x))[round(0.99 * len(x)) - 1])


def test_a_percentile_out_of_range_is_refused():
    with pytest.raises(ValueError, match="percentile is 101"):
        MinMax(8, percentile=101)
