"""Errors on powers of two, against their bounds."""

from power_of_two_error import row


def test_the_better_power_loses_least():
    nearest, above, better = row(2)
    assert 1 <= better <= min(nearest, above) and nearest < above < 2
