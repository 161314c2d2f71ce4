"""Bits of single layers, as text."""

import pytest

from spequant.app.recipes.overrides import parse_overrides


def test_the_last_one_of_a_pattern_stands():
    last = parse_overrides(["a=2", "*=4", "a=3/float"])
    assert list(last.items()) == [("*", 4), ("a", (3, None))]
    assert parse_overrides(["b=float", "c=float/8", "d=e=1"]) == {"b": None, "c": (None, 8), "d=e": 1}


@pytest.mark.parametrize(
    "text", ["conv1", "conv1=", "=3", "conv1=9", "conv1=0", "conv1=2/3/4", "conv1=a/3", "conv1=12"]
)
def test_bits_that_make_none_are_named(text):
    with pytest.raises(ValueError, match=f"quant.overrides has {text!r}; expected PATTERN=BITS"):
        parse_overrides([text])
