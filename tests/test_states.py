"""States out of files, without the versions that torch keeps beside the tensors."""

import pytest
import torch
import torchvision
from torch import nn

from spequant.states import versioned


def test_a_network_that_asks_for_its_version_loads_a_file_without():
    network = torchvision.models.mnasnet0_5()
    plain = dict(network.state_dict())
    other = torchvision.models.mnasnet0_5()
    other.load_state_dict(versioned(other, plain))
    assert all(torch.equal(v, plain[name]) for name, v in other.state_dict().items())


def test_torchs_own_layers_are_taken_for_what_the_file_lacks():
    norm = nn.BatchNorm1d(2)
    old = {name: v for name, v in norm.state_dict().items() if name != "num_batches_tracked"}  # older than version 2
    norm.load_state_dict(versioned(norm, old))


def test_versions_that_are_there_are_kept():
    norm = nn.BatchNorm1d(2)
    state = norm.state_dict()
    state.pop("num_batches_tracked")  # of a file that says it is of version 2, which has it
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        norm.load_state_dict(versioned(norm, state))
