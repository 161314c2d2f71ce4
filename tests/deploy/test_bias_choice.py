"""Biases at which engines that round in different ways have the same codes."""

import numpy as np
import pytest
import torch

from spequant.deploy.bias_choice import agreeing_biases
from spequant.deploy.grids import Grid
from spequant.deploy.integers import Integers
from spequant.deploy.operations import Input, Weighted
from spequant.deploy.requantization import agreement, factor_of, rounding_steps, spread_of


def layer(bits: int, grid: Grid, seed: int = 0) -> Weighted:
    """Of `bits` from codes of as many."""
    generator = torch.Generator().manual_seed(seed)
    source = Input("x", (), Grid(0.5, 0, 2**bits - 1), (1, 40, 1, 1))
    weight = 2 * torch.randint(0, 2**bits, (32, 40, 1, 1), generator=generator) - 2**bits + 1
    scale, offset = (torch.rand(32, generator=generator).double() + 0.5 for _ in range(2))
    return Weighted("layer", (source,), grid, (1, 32, 1, 1), weight.short(), scale, offset, (1, 1), (0, 0), (1, 1))


def agree(op: Weighted, moved: np.ndarray) -> np.ndarray:
    assert op.grid is not None
    form = Integers(op.integers.weight, op.integers.bias + torch.from_numpy(moved).int(), op.integers.scale)
    s = rounding_steps(form, factor_of(op), (op.source.low, op.source.high), op.grid.low, op.grid.high)
    return agreement(s.times(spread_of(op)))


def test_the_nearest_bias_with_which_engines_agree_is_taken():
    op = layer(4, Grid(1.7, -127, 127))
    before, moved = agree(op, np.zeros(32, np.int64)), agreeing_biases([op], 32)
    assert 0.2 < before.mean() < 0.9 and agree(op, moved).mean() > 0.95
    assert not moved[before].any() and moved.any() and abs(moved).max() <= 4  # sums are 8 apart
    for off in (1, -1):
        assert not (agree(op, np.full(32, off)) & (abs(moved) > 1)).any()


def test_few_codes_leave_biases_where_they_are():
    assert not agreeing_biases([layer(2, Grid(9.0, 0, 3))], 32).any()


def test_a_bias_serves_all_that_read_it():
    """Two quantizers, and the phases of a channel: outputs next to each other that share it."""
    ops = [layer(4, grid) for grid in (Grid(1.7, -127, 127), Grid(1.3, -127, 127))]
    moved = agreeing_biases(ops, 32)
    alone = agreeing_biases(ops[:1], 32)
    assert (moved != alone).any() and all(agree(op, moved).mean() > 0.8 for op in ops)
    phases = agreeing_biases(ops[:1], 16)
    assert agree(ops[0], np.repeat(phases, 2)).mean() > 0.8


@pytest.mark.parametrize("grid", [Grid(1.7, 0, 0), Grid(0.02, -127, 127)])
def test_where_none_does_it_stays(grid):
    """A grid of one code has no steps; 8-bit sums of 8-bit codes leave steps no room."""
    assert not agreeing_biases([layer(8 if grid.high else 2, grid)], 32).any()
    assert not agreeing_biases([], 32).any()
