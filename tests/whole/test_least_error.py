"""How much of a weight rounding loses, with the range that each quantizer finds for it or starts from: never much more
than the best grid of that width would, whatever its values, their number and their scale.

Left out are quantizers whose range is not meant to be near the weight: MinMax ends at the largest value, or at a
percentile, by its definition; DoReFa and APoT normalise the weight, and lose its scale.
"""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from reference import quantizers as literal
from spequant.quantizers import CSQ, LSQ, PACT, SAWB, LeastSquares, least_squares
from support.quantizing import fitted
from support.weights import LUMPED, SPREAD

TIMES = 2.0
EXACT = 1e-6
"""of the weight's norm: fp32 at both ends of the comparison"""


def lost(q, rows) -> np.ndarray:
    """Of each row, the L2 norm of what `q` changes."""
    with torch.no_grad():
        return (q(rows).double() - rows.double()).norm(dim=1).numpy()


def around_zero(rows, bits):
    """Quantizers on 2^b - 1 levels, zero among them."""
    shape = {"shape": (len(rows), 1), "of_weight": True}
    made = {
        "LeastSquares": LeastSquares(bits, **shape),
        "PACT": fitted(PACT(bits, signed=True, **shape), rows, least_squares),
    }
    if bits > 4:
        made |= {"SAWB": SAWB(bits, **shape), "CSQ": fitted(CSQ(bits, **shape), rows, least_squares)}
    return made


def without_zero(rows, bits):
    """Quantizers on 2^b levels, half of them below zero."""
    shape = {"shape": (len(rows), 1), "of_weight": True}
    made = {
        "LeastSquares": LeastSquares(bits, zero=False, **shape),
        "CSQ": fitted(CSQ(bits, **shape), rows, least_squares),
    }
    return made | ({"LSQ": fitted(LSQ(bits, **shape), rows, least_squares)} if bits == 1 else {})


GRIDS = {
    "zero in the middle": (2, 8, around_zero, lambda b: (-(2 ** (b - 1) - 1), 2 ** (b - 1) - 1)),
    "no zero": (1, 4, without_zero, lambda b: (-(2**b - 1) / 2, (2**b - 1) / 2)),
    "one more below zero": (
        2,
        8,
        lambda rows, bits: {"LSQ": fitted(LSQ(bits, of_weight=True, shape=(len(rows), 1)), rows, least_squares)},
        lambda b: (-(2 ** (b - 1)), 2 ** (b - 1) - 1),
    ),
}
"""{name: (fewest bits, most, (rows, bits) -> quantizers, bits -> (lowest code, highest))}"""


def check(kind, rows, bits, clips=300):
    _, _, made, codes = GRIDS[kind]
    least = literal.least_error(rows.double().numpy(), *codes(bits), clips)
    norm = rows.double().norm(dim=1).numpy()
    for name, q in made(rows, bits).items():
        excess = lost(q, rows) - TIMES * least - EXACT * norm
        assert (excess <= 0).all(), f"{name} at {bits} bits loses {excess.max() / norm.max():.3g} of the norm too much"


@pytest.mark.parametrize("kind", GRIDS)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([*SPREAD, *LUMPED]),
    values=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16, 27, 31, 32, 64, 144]),
    width=st.integers(0, 7),
    decades=st.integers(-12, 12),
    seed=st.integers(0, 2**16),
)
def test_no_weight_loses_more_than_twice_the_least(kind, name, values, width, decades, seed):
    fewest, most, _, _ = GRIDS[kind]
    torch.manual_seed(seed)
    rows = (SPREAD | LUMPED)[name](3, values) * 10.0**decades
    check(kind, rows, fewest + width % (most - fewest + 1))


SHAPES = {
    "a fresh classifier": lambda: nn.Linear(64, 10).weight.detach().reshape(1, -1),
    "one output": lambda: nn.Linear(8, 1).weight.detach(),
    "a fresh classifier, by channel": lambda: nn.Linear(64, 10).weight.detach(),
    "a first convolution": lambda: nn.Conv2d(3, 16, 3).weight.detach().reshape(1, -1),
    "a first convolution, by channel": lambda: nn.Conv2d(3, 16, 3).weight.detach().flatten(1),
    "a depthwise convolution": lambda: nn.Conv2d(16, 16, 3, groups=16).weight.detach().flatten(1),
    "a pointwise convolution of grey": lambda: nn.Conv2d(1, 8, 1).weight.detach().flatten(1),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [5, 8])
def test_no_fresh_layer_does(shape, bits):
    check("zero in the middle", SHAPES[shape](), bits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("name", [*SPREAD, *LUMPED])
@pytest.mark.parametrize("values", [6, 432, 20_011])
def test_no_weight_of_any_size_does(values, name, kind):
    """Those read in part, too."""
    fewest, most, _, _ = GRIDS[kind]
    for bits in range(fewest, most + 1):
        check(kind, (SPREAD | LUMPED)[name](1 if values > 500 else 8, values), bits, 40 if values > 500 else 200)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([*SPREAD, *LUMPED]),
    values=st.sampled_from([1, 2, 3, 5, 9, 27, 31, 32, 64, 144]),
    bits=st.integers(1, 4),
    decades=st.integers(-12, 12),
    seed=st.integers(0, 2**16),
)
@example(name="positive", values=64, bits=4, decades=0, seed=0)
@example(name="positive", values=64, bits=3, decades=0, seed=0)
@example(name="two lumps", values=64, bits=3, decades=0, seed=0)
@example(name="plus or minus one", values=64, bits=3, decades=0, seed=0)
def test_where_sawb_keeps_the_published_line_neither_does_it(name, values, bits, decades, seed):
    """Up to 4 bits: of many values but for those that are few different numbers, where a bound holds that needs no
    search: half a step up to max|w|, and as much again as a third of its square for what is cut off."""
    torch.manual_seed(seed)
    rows = (SPREAD | LUMPED)[name](3, values) * 10.0**decades
    found = lost(SAWB(bits, shape=(3, 1)), rows)
    if values < 32 or name in SPREAD:
        half = (2**bits - 1) / 2
        least = literal.least_error(rows.double().numpy(), -half, half, 200)
        assert (found <= TIMES * least + EXACT * rows.double().norm(dim=1).numpy()).all()
    largest = rows.abs().amax(1).double().numpy() * values**0.5
    assert bits == 1 or (found <= (4 / 3) ** 0.5 * largest / (2**bits - 1) * (1 + EXACT)).all()


@pytest.mark.parametrize("kind", GRIDS)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    numbers=st.lists(st.floats(-1, 1, width=32) | st.integers(-130, 130).map(float), min_size=1, max_size=6),
    width=st.integers(0, 7),
    times=st.sampled_from([1, 30]),
)
def test_no_few_numbers_do(kind, numbers, width, times):
    """However they lie to each other; what is less than 1e-25 is nothing."""
    fewest, most, _, _ = GRIDS[kind]
    rows = torch.tensor([numbers * times])
    check(kind, torch.where(rows.abs() < 1e-25, 0.0, rows), fewest + width % (most - fewest + 1))
