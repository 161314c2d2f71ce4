"""Float networks: the head, copies of networks that compute their weights, versions of states."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import spequant
from spequant.methods import QFD, Distill
from spequant.models import load_weights, make_network
from spequant.networks import copied, head_of, versioned
from spequant.quantizers import PACT, SAWB

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
def test_new_head_and_qfd_mean_the_same_layer(case, tmp_path):
    make, head = HEADS[case]
    network, other = make(), make()
    assert head_of(network) == head and QFD(network).head == head
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt", new_head=True)
    for name, weight in network.named_parameters():
        if not name.endswith("weight") or "bn" in name or weight.dim() < 2:
            continue  # biases and batch norm start as zeros and ones, equal in both networks
        assert torch.equal(weight, other.get_parameter(name)) != name.startswith(f"{head}."), name


@pytest.mark.parametrize("network", [nn.ReLU(), nn.Embedding(5, 4), nn.Linear(4, 2)])
def test_a_network_without_a_head_is_refused(network):
    with pytest.raises(ValueError, match=rf"{type(network).__name__} has no linear layer"):
        head_of(network)


COMPUTED = {
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
}


def network(name):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    COMPUTED[name](net[2])
    net(torch.randn(4, 8))
    return net.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("name", COMPUTED)
def test_a_copy_computes_the_same_and_shares_no_tensor(name):
    net, x = network(name), torch.randn(4, 8)
    other = copied(net)
    assert torch.equal(other(x), net(x))
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    assert not torch.equal(other(x), net(x))
    other(x).sum().backward()
    assert all(p.grad is None for p in net.parameters()) and all(p.grad is not None for p in other.parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("name", COMPUTED)
def test_a_network_that_computes_a_weight_is_prepared_without_that_layer_and_can_teach(name):
    net, x = network(name), torch.randn(16, 8)
    model = spequant.prepare(net, weight=SAWB(2), act=PACT(2), skip=["2"])
    spequant.calibrate(model, [x], samples=16)
    assert isinstance(model[2], nn.Linear)
    losses = Distill(net)(model, (x, torch.arange(16) % 3))
    losses.total.backward()
    assert losses.distill > 0
    spequant.unprepare(model)(x)


def test_a_network_that_needs_a_version_loads_a_state_without_versions():
    network = torchvision.models.mnasnet0_5()
    plain = dict(network.state_dict())
    other = torchvision.models.mnasnet0_5()
    other.load_state_dict(versioned(other, plain))
    assert all(torch.equal(v, plain[name]) for name, v in other.state_dict().items())


def test_layers_of_torch_load_an_old_state_without_versions():
    norm = nn.BatchNorm1d(2)
    old = {name: v for name, v in norm.state_dict().items() if name != "num_batches_tracked"}  # as before version 2
    norm.load_state_dict(versioned(norm, old))


def test_versions_of_a_state_stay():
    norm = nn.BatchNorm1d(2)
    state = norm.state_dict()
    state.pop("num_batches_tracked")  # but the state says that it is of version 2, which has that tensor
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        norm.load_state_dict(versioned(norm, state))
