"""Other toolkits' low-bit networks: low-bit indeed, the ends and addends apart, and they learn."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from peers import PEERS, brevitas, low_bit, modelopt, torch_ao, torchao
from spequant.app.bench.subjects import make_subject
from spequant.app.bench.train import STEPS, BenchTrain, ready
from spequant.methods import Retrain, allow_float
from spequant.models import resnet8

SETTINGS = BenchTrain("resnet8", batch=2, size=8, rounds=1, threads=1, device="cpu", compile=False)


def test_every_layer_and_addend_has_its_own():
    """First and last at 8 bits; the input of the first alone has negative values."""
    made: list[tuple[str, int, bool]] = []
    addends: list[nn.Module] = []

    def layer(m, bits, signed):
        made.append((type(m).__name__, bits, signed))
        return m

    def addend():
        addends.append(nn.Hardtanh(-0.5, 0.5))
        return addends[-1]

    network, x = resnet8(), torch.randn(2, 3, 8, 8)
    before = network.train()(x)
    model = low_bit(network, 3, layer, addend)
    inner = [("Conv2d", 3, False)] * 6
    assert made == [("Conv2d", 8, True), *inner, ("Linear", 8, False)] and len(addends) == 2 * 3
    assert model.training and not torch.equal(model(x), before)
    assert torch.equal(low_bit(resnet8(), 3, layer, nn.Identity).eval()(x).isfinite(), torch.ones(2, 10, dtype=bool))


@pytest.mark.filterwarnings("ignore")
def test_torch_ao_is_low_bit_and_learns():
    subject = make_subject("resnet8", 4, 8, torch.device("cpu"))
    levels: dict[str, int] = {}
    model = torch_ao(subject.network, 2)
    model(subject.batch[0])

    def read(name):
        return lambda module, inputs: levels.__setitem__(name, len(inputs[0].detach().unique()))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(read(name))
    Retrain()(allow_float(model), subject.batch).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert sorted(levels.values())[:-1] == [4] * (len(levels) - 1) and max(levels.values()) > 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_brevitas_is_low_bit_and_learns():
    pytest.importorskip("brevitas")
    subject = make_subject("resnet8", 4, 8, torch.device("cpu"))
    model = brevitas(subject.network, 2)
    model(subject.batch[0])
    Retrain()(allow_float(model), subject.batch).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    widths = [int(m.quant_weight().bit_width) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert widths == [8, *[2] * (len(widths) - 2), 8]
    model.zero_grad()
    Retrain()(allow_float(model), subject.batch).total.backward()  # from the second step on the bounds learn
    bounds = [p.grad.abs().max() for n, p in model.named_parameters() if "input_quant" in n or "act_quant" in n]
    assert len(bounds) > len(widths) and all(bounds)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_modelopt_is_low_bit_and_learns():
    pytest.importorskip("modelopt.torch.quantization")
    subject = make_subject("resnet8", 4, 8, torch.device("cpu"))
    model = modelopt(subject, 2)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    levels = [len(m.weight_quantizer(m.weight).detach().unique()) for m in layers]
    assert max(levels[1:-1]) <= 4 < min(levels[0], levels[-1]) and all(m.input_quantizer.is_enabled for m in layers)
    Retrain()(allow_float(model), subject.batch).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchaos_linear_layers_are_low_bit():
    pytest.importorskip("torchao.quantization.qat")
    network = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    model = torchao(network, 4)
    quantizers = [m.weight_fake_quantizer for m in model]
    rows = [len(q(m.weight)[0].unique()) for q, m in zip(quantizers, model, strict=True)]
    assert rows[1] <= 16 and all(type(m) is not nn.Linear for m in model)
    model(torch.randn(2, 16)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def takes_a_step(name: str) -> None:
    step, fixed_bytes = ready(pickle.loads(pickle.dumps(PEERS[name])), SETTINGS)  # as a process of its own gets it
    before = fixed_bytes()
    assert float(step()[0]) > 0
    assert fixed_bytes() > before > 4 * 75_000


@pytest.mark.filterwarnings("ignore")
def test_torch_ao_takes_a_step():
    takes_a_step("torch.ao")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_brevitas_takes_a_step():
    pytest.importorskip("brevitas")
    takes_a_step("brevitas")


def test_no_peer_stands_for_a_row_of_ours():
    names = ["torch.ao", "torchao", "brevitas", "modelopt"]
    assert list(PEERS) == [*names, *(f"{name} eager" for name in names)] and not set(PEERS) & set(STEPS)


@pytest.mark.slow
def test_the_script_prints_rows_of_both():
    script = Path(__file__).parents[2] / "benchmarks" / "peers.py"
    size = ("--network", "resnet8", "--batch", "2", "--size", "8", "--rounds", "1")
    options = (*size, "--threads", "1", "--device", "cpu", "--no-compile", "--rows", "retrain", "torch.ao eager")
    command = [sys.executable, str(script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [line.split("│")[1].strip() for line in done.splitlines() if line.startswith("│")]
    assert names == ["float", "retrain", "torch.ao eager"] and "input: " in done
