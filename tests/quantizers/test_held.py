"""Held: the quantizer of packed files, with constant bounds."""

import pytest
import torch

from spequant.quantizers.held import Held


@pytest.mark.parametrize("levels", [3, 4])
def test_it_rounds_to_its_levels_and_has_no_parameters(levels):
    q = Held(2, levels=levels, signed=True)
    q.hold(torch.tensor(-1.5), torch.tensor(1.5))
    assert q(torch.linspace(-9, 9, 500)).unique().tolist() == torch.linspace(-1.5, 1.5, levels).tolist()
    assert not list(q.parameters()) and q.like(shape=(2,)).held_levels == levels
    fresh = Held(2, levels=levels, signed=True)
    fresh.load_state_dict(q.state_dict())
    assert torch.equal(fresh(torch.ones(3)), q(torch.ones(3)))


def test_grids_at_other_bits_have_an_even_or_odd_number_of_levels_as_at_home():
    assert [Held(2, levels=4).level_count(bits) for bits in (None, 1, 2, 3)] == [4, 2, 4, 8]
    assert [Held(2, levels=3).level_count(bits) for bits in (None, 1, 2, 3)] == [3, 2, 3, 7]


@pytest.mark.parametrize("levels", [1, 5])
def test_more_levels_than_the_bits_have_codes_are_refused(levels):
    with pytest.raises(ValueError, match=f"levels is {levels}; expected 2 to 4"):
        Held(2, levels=levels)
