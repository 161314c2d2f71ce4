"""Which layer of a network is its head, asked where a new head is loaded and where methods look at features."""

import pytest
import torch
from torch import nn

from spequant.kinds import head_of
from spequant.methods import QFD
from spequant.models import load_weights, make_network

HEADS = {
    "linear": (lambda: make_network("resnet8", classes=3), "linear"),
    "the last of several": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)), "3"),
    "a convolution": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), "2"),
    "a transposed one": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3)), "1"),
    "in one dimension": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Conv1d(3, 2, 3), nn.ReLU()), "1"),
    "in three": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Conv3d(3, 2, 3), nn.Flatten()), "1"),
    "before an embedding": (lambda: nn.ModuleDict({"out": nn.Linear(4, 5), "table": nn.Embedding(5, 4)}), "out"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_new_head_and_a_feature_are_of_the_same_layer(case, tmp_path):
    make, head = HEADS[case]
    network, other = make(), make()
    assert head_of(network) == head and QFD(network).head == head
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt", new_head=True)
    for name, weight in network.named_parameters():
        if not name.endswith("weight") or "bn" in name or weight.dim() < 2:
            continue  # what starts as ones or zeros is the same in both
        assert torch.equal(weight, other.get_parameter(name)) != name.startswith(f"{head}."), name


@pytest.mark.parametrize("network", [nn.ReLU(), nn.Embedding(5, 4), nn.Linear(4, 2)])
def test_a_network_without_a_head_is_named(network):
    with pytest.raises(ValueError, match=rf"{type(network).__name__} has no linear layer"):
        head_of(network)
