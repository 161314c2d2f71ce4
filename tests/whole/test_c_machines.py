"""C programs on other machines, emulated: the codes of every layer are the twin's there, too."""

import subprocess

import pytest
import torch
from torch import nn

from spequant.deploy import lower
from spequant.deploy.c.engine import stack_size
from spequant.deploy.c.footprint import STACK
from spequant.deploy.c.project import write_project
from spequant.deploy.formats.c import c_project
from spequant.quantizers import LSQ, SAWB
from support.edge_networks import EDGES
from support.integer_networks import QUANTIZED, lowered, prepared
from support.machines import MACHINES, STACK_MAIN

SMALL = ("AVR",)  # what has too little memory for others
QUICK = "ARMv7-A"  # whose compiler .ci/run installs


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


@pytest.mark.parametrize("name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MACHINES])
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "cpu"), [("four bits", "cortex-m4"), ("eight bits", "cortex-m4"), ("eight bits", "cortex-m0")]
)
def test_pairs_are_multiplied_where_the_core_can(bits, cpu, tmp_path):
    machine = MACHINES["Cortex-M4"]
    if machine.missing is not None:
        pytest.skip(f"{machine.missing} is not installed")
    write_project(tmp_path, "net", c_project(lowered(bits).program), {})
    command = [machine.compiler, f"-mcpu={cpu}", "-mthumb", "-Os", "-S", "net.c", "-o", "net.s"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert ("smlad" in (tmp_path / "net.s").read_text()) == (cpu == "cortex-m4")


def programs():
    """{name: makes one}, with kernels of products of every kind, tables, pools and what moves."""
    yield from ((bits, lambda bits=bits: lowered(bits).program) for bits in ("two bits", "eight bits", "lsq", "dorefa"))
    for network in ("MLPerf Tiny DS-CNN", "torchvision/shufflenet_v2_x0_5"):
        x = torch.randn(2, *EDGES[network].shape)
        yield network, lambda n=network, x=x: lower(prepared(EDGES[n].make(), x, SAWB(4), between=8), x[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Cortex-M4", "Cortex-M0", "RISC-V 32"])
def test_the_stack_is_not_deeper_than_the_manifest_says(name, tmp_path):
    machine = MACHINES[name]
    if machine.missing is not None:
        pytest.skip(f"{machine.missing} is not installed")
    for network, make in programs():
        write_project(tmp_path, "net", c_project(make()), {})
        (tmp_path / "stack.c").write_text(STACK_MAIN)
        said, used = stack_size(tmp_path, "net"), int(machine.printed(tmp_path, "stack.c").split()[0])
        assert said is not None and 0 < used <= min(said, STACK), f"{network}: {used} bytes of {said}"
