"""Codes of 1 to 8 bits side by side in bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spequant.deploy.bits import pack_bits, packed_size, unpack_bits


@given(st.integers(1, 8).flatmap(lambda w: st.tuples(st.just(w), st.lists(st.integers(0, 2**w - 1), max_size=70))))
def test_codes_of_every_width_come_back(case):
    width, codes = case
    data = pack_bits(np.array(codes, np.uint8), width)
    assert data.size == packed_size(len(codes), width) == -(-len(codes) * width // 8)
    assert unpack_bits(data, len(codes), width).tolist() == codes
    # The literal twin: one whole number, code i at bit i * width.
    assert int.from_bytes(data.tobytes(), "little") == sum(c << (i * width) for i, c in enumerate(codes))


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"reach 4; .* less than 4, for 2 bits"):
        pack_bits(np.array([0, 4], np.uint8), 2)
    with pytest.raises(ValueError, match=r"3 codes of 3 bits .* 1 bytes; expected 2"):
        unpack_bits(np.zeros(1, np.uint8), 3, 3)
    with pytest.raises(ValueError, match=r"last of 3 codes .* zero"):
        unpack_bits(np.array([0b10000000], np.uint8), 3, 2)
