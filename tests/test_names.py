"""Lists of names in messages, cut short."""

import pytest

from spequant.names import some_of


@pytest.mark.parametrize(
    ("names", "most", "expected"),
    [
        (["a"], 3, "a"),
        (["a", "b", "c"], 3, "a, b, c"),
        (["a", "b", "c", "d", "e"], 3, "a, b, c and 2 more"),
        (["a", "b"], 1, "a and 1 more"),
        ([], 3, ""),
    ],
)
def test_names_beyond_the_first_are_counted(names, most, expected):
    assert some_of(names, most) == expected
