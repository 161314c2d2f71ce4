"""A process without a process group; the network inside wrappers; the share of a process."""

import pytest
import torch
from torch import nn

from spequant.processes import gathered, innermost, leave, portion, rank, sum_over_processes, unwrapped, world
from spequant.train import Compiled


def test_a_single_process_gets_its_own_values():
    x = torch.tensor([1.0, 2.0])
    assert (rank(), world(), gathered("mine")) == (0, 1, ["mine"])
    assert sum_over_processes(x) is x and x.tolist() == [1.0, 2.0]


def test_a_group_is_left_once(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    leave()
    assert not torch.distributed.is_initialized()
    leave()


def test_the_network_inside_wrappers():
    network = nn.Linear(2, 2)
    assert unwrapped(network) is network and innermost(network) is network
    assert innermost(nn.DataParallel(torch.compile(network))) is network
    assert innermost(nn.DataParallel(Compiled(network))) is network


def test_items_that_do_not_divide_evenly_are_refused():
    assert portion(12, "train.batch_size", 4, 2) == slice(6, 9)
    with pytest.raises(ValueError, match=r"train\.batch_size is 10; expected a multiple of 4"):
        portion(10, "train.batch_size", 4, 0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: torch.optim.swa_utils.AveragedModel(net),
        lambda net: nn.DataParallel(net),
        lambda net: torch.compile(net),
        lambda net: torch.compile(torch.optim.swa_utils.AveragedModel(net)),
    ],
)
def test_the_innermost_network_has_the_names_of_the_unwrapped_one(wrap):
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    inner = innermost(wrap(network))
    assert [name for name, _ in inner.named_modules()] == [name for name, _ in network.named_modules()]
    x = torch.randn(3, 4)
    assert torch.equal(inner(x), network(x))


def test_innermost_replaces_a_compiled_part_and_leaves_the_model_unchanged():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    names, shared = [name for name, _ in network.named_parameters()], network[0]
    network[1] = torch.compile(network[1])
    inner = innermost(network)
    assert [name for name, _ in inner.named_parameters()] == names and inner[0] is shared
    assert all(a is b for a, b in zip(inner.parameters(), network.parameters(), strict=True))
    assert "_orig_mod" in network[1]._modules
