"""Grids of codes, and what clamps leave of them."""

import pytest

from spequant.deploy.grids import Grid


@pytest.mark.parametrize(
    ("grid", "ends", "expected"),
    [
        (Grid(0.6, -1, 1), (-5.0, -1.0), (-1, -1)),
        (Grid(1.0, 0, 3), (5.0, float("inf")), (3, 3)),
        (Grid(1.0, 0, 3), (-float("inf"), -2.0), (0, 0)),
        (Grid(0.5, -127, 127), (0.0, 6.0), (0, 12)),
    ],
)
def test_a_clamped_grid_stays_within_the_grid(grid, ends, expected):
    clamped = grid.clamped(*ends)
    assert (clamped.low, clamped.high) == expected
    again = clamped.clamped(-1.0, 1.0)
    assert clamped.low <= again.low <= again.high <= clamped.high
