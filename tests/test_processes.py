"""What a process says of itself alone, and its share of what all divide."""

import pytest
import torch
from torch import nn

from spequant.processes import gathered, innermost, portion, rank, sum_over_processes, unwrapped, world


def test_alone_there_is_nothing_to_bring_together():
    x = torch.tensor([1.0, 2.0])
    assert (rank(), world(), gathered("mine")) == (0, 1, ["mine"])
    assert sum_over_processes(x) is x and x.tolist() == [1.0, 2.0]


def test_the_network_inside_wrappers():
    network = nn.Linear(2, 2)
    assert unwrapped(network) is network and innermost(network) is network
    assert innermost(nn.DataParallel(torch.compile(network))) is network


def test_a_share_that_does_not_divide_is_refused():
    assert portion(12, "train.batch_size", 4, 2) == slice(6, 9)
    with pytest.raises(ValueError, match=r"train\.batch_size is 10; expected a multiple of 4"):
        portion(10, "train.batch_size", 4, 0)
