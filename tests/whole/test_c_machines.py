"""C programs on other machines, emulated: the codes of every layer are the twin's there, too."""

import pytest
import torch
from torch import nn

from spequant.deploy import lower
from spequant.deploy.c.project import write_project
from spequant.deploy.formats.c import c_project
from spequant.quantizers import LSQ, SAWB
from support.edge_networks import EDGES
from support.integer_networks import QUANTIZED, lowered, prepared
from support.machines import MACHINES

SMALL = ("AVR",)  # what has too little memory for others


def tiny():
    """A network that a few hundred bytes hold."""
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)]
    x = torch.randn(16, 1, 8, 8)
    return lower(prepared(nn.Sequential(*layers), x, LSQ(2), LSQ(2), ends=4), x[:1])


def runs(name, program, folder):
    machine = MACHINES[name]
    if machine.missing is not None:
        pytest.skip(f"{machine.missing} is not installed")
    write_project(folder, "net", c_project(program), {})
    assert "all equal" in machine.printed(folder)


@pytest.mark.parametrize("name", [n if n == "Cortex-M4" else pytest.param(n, marks=pytest.mark.slow) for n in MACHINES])
def test_a_tiny_network_on_every_machine(name, tmp_path):
    runs(name, tiny(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MACHINES if n not in SMALL])
@pytest.mark.parametrize("bits", [q for q in QUANTIZED if q != "float ends"])
def test_networks_of_every_width(name, bits, tmp_path):
    runs(name, lowered(bits).program, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MACHINES if n not in SMALL])
@pytest.mark.parametrize("network", ["MLPerf Tiny ResNet-8", "MLPerf Tiny DS-CNN"])
def test_networks_of_mlperf_tiny(name, network, tmp_path):
    edge = EDGES[network]
    x = torch.randn(2, *edge.shape)
    runs(name, lower(prepared(edge.make(), x, SAWB(2), between=8), x[:1]), tmp_path)
