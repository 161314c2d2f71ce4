"""Dimensions in .tflite graphs: which lie where, and when numbers have to move for another shape."""

import pytest
import torch

from spequant.deploy.tflite_order import laid, last, moving, place, regrouped, runs_of_order


def test_channels_are_last():
    assert [last(rank) for rank in (1, 2, 3, 4)] == [(0,), (0, 1), (0, 2, 1), (0, 2, 3, 1)]
    assert laid((1, 5, 6, 7), last(4)) == [1, 6, 7, 5] and laid((1, 5, 6), last(3)) == [1, 1, 6, 5]
    assert place(last(4), 1) == 3 and place(last(3), 1) == 3 and place(last(3), 0) == 0


@pytest.mark.parametrize(
    ("old", "order", "new", "moves"),
    [
        ((1, 6, 4, 5), last(4), (1, 6, 20), False),  # positions as one dimension
        ((1, 6, 4, 5), last(4), (1, 2, 3, 20), False),  # channels as two
        ((1, 6, 4, 5), last(4), (1, 120), True),  # torch's order
        ((1, 6, 1, 1), last(4), (1, 6), False),
        ((1, 4, 5, 6), (0, 1, 2, 3), (1, 10, 12), False),  # an image that was permuted, as rows
        ((1, 3, 2, 20), (0, 3, 2, 1), (1, 6, 4, 5), True),  # channels in turn
        ((1, 1, 1), last(3), (1, 1), False),
        ((1, 6, 4), last(3), (1, 3, 2, 4), False),
    ],
)
def test_numbers_keep_their_places_in_another_shape(old, order, new, moves):
    """Seen on numbers: laid out in the first order, they have the second one's shape."""
    before, after = regrouped(old, order, new)
    assert (moving(old, before) != moving(old, order)) == moves
    x = torch.arange(torch.Size(old).numel()).view(old)
    assert torch.equal(x.permute(before).reshape(-1), x.reshape(new).permute(after).reshape(-1))


def test_dimensions_that_stay_together_move_as_one():
    shape = (1, 3, 2, 2, 4, 5)
    assert runs_of_order(shape, (0, 4, 5, 1, 2, 3), (0, 4, 2, 5, 3, 1)) == [[0, 4], [2], [5], [3], [1]]
    assert runs_of_order((1, 3, 4, 5), last(4), (0, 1, 2, 3)) == [[0], [1], [2, 3]]
