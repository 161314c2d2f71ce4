"""Pooling, means and maxima in .tflite graphs: the twin's codes in both engines."""

import pytest

from spequant.deploy.grids import Grid
from spequant.deploy.operations import Amax, AvgPool, MaxPool, Mean
from support.tflite_alone import ENDS, FEW, MANY, check, source

IMAGE = (6, 8, 9)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENDS)
@pytest.mark.parametrize(
    ("result", "window"),
    [
        ((6, 4, 4), ((2, 2), (2, 2), (0, 0))),
        ((6, 8, 9), ((3, 3), (1, 1), (1, 1))),  # SAME
        ((6, 4, 5), ((3, 3), (2, 2), (1, 1))),
        ((6, 4, 5), ((2, 3), (2, 2), (1, 0, 0, 2))),  # other sides before and after
    ],
)
def test_pooling(result, window, engine):
    for grid in (FEW, MANY, None):
        x, given = source(IMAGE, grid)
        check(MaxPool("op", (x,), grid, (1, *result), *window), given, engine=engine)
        out = None if grid is None else Grid(0.013, grid.low, grid.high)
        for counts in (True, False):
            op = AvgPool("op", (x,), out, (1, *result), *window, counts_padding=counts)
            check(op, given, engine=engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENDS)
@pytest.mark.parametrize("shape", [IMAGE, (6, 11), (6, 2, 2)])
def test_means_and_maxima(shape, engine):
    for grid in (FEW, MANY, None):
        out = None if grid is None else Grid(0.017, grid.low, grid.high)
        x, given = source(shape, grid)
        kept = (1, 6, *[1] * (len(shape) - 1))
        for keep, result in ((False, (1, 6)), (True, kept)):
            check(Mean("op", (x,), out, result, keep), given, engine=engine)
            check(Amax("op", (x,), grid, result, keep), given, engine=engine)
        rest = (1, *shape[1:])
        for kind, to in ((Mean, out), (Amax, grid)):
            check(kind("op", (x,), to, rest, False, (1,)), given, engine=engine)
            check(kind("op", (x,), to, (1, 1, *shape[1:]), True, (1,)), given, engine=engine)


def test_means_of_codes_are_integers_whose_ties_are_even():
    x, given = source((6, 2, 2), FEW)  # every fourth sum is a tie
    assert check(Mean("op", (x,), FEW, (1, 6), False), given, engine="litert") == ["DEPTHWISE_CONV_2D", "RESHAPE"]
