#!/usr/bin/env python3
"""Small networks with batch norm through `quant_graph`, hls4ml and g++: how many answers are those of torch.

usage: hls4ml_networks.py [--python 3.11] [REQUIREMENT ...]     by default hls4ml==1.3.0 qonnx==1.0.0

In networks "on powers of two" batch norm is folded and each scale is a power of two.

hls4ml gets an environment of its own in a temporary folder, as in old_engines.py. Prints a Markdown table.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

import spequant
from old_engines import environment
from spequant.deploy import lower, quant_graph, quantize_biases, write_onnx
from spequant.models.resnet_cifar import CifarResNet
from spequant.quantizers import LSQ, PACT, SAWB, percentile

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "hls4ml_run.py"
REQUIREMENTS = ("hls4ml==1.3.0", "qonnx==1.0.0")
SAMPLES = 64
PRECISIONS = ("fixed<48,16>", "fixed<32,16>", "fixed<16,6>")


def mlp() -> nn.Module:
    first, second = ([nn.Linear(inputs, 32), nn.BatchNorm1d(32), nn.ReLU()] for inputs in (16, 32))
    return nn.Sequential(*first, *second, nn.Linear(32, 5))


def block(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def cnn() -> nn.Module:
    return nn.Sequential(*block(1, 6), nn.MaxPool2d(2), *block(6, 8), nn.Flatten(), nn.Linear(128, 5))


def depthwise() -> nn.Module:
    return nn.Sequential(*block(1, 6), *block(6, 6, groups=6), *block(6, 8, 1), nn.Flatten(), nn.Linear(512, 5))


def folded(network: nn.Sequential) -> nn.Module:
    """`network` with each batch norm in the layer before it."""
    layers: list[Any] = []
    for layer in network.eval():
        if isinstance(layer, nn.BatchNorm1d):
            layers[-1] = fusion.fuse_linear_bn_eval(layers[-1], layer)
        elif isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fusion.fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def residual() -> nn.Module:
    return CifarResNet(1, in_channels=1, widths=(4, 6, 8))


POWERS = LSQ(4, power_of_two=True)
ON_POWERS = ", on powers of two"

NETWORKS: dict[str, Callable[[], tuple[nn.Module, dict[str, object]]]] = {
    "MLP, W2A2": lambda: (mlp(), {"weight": SAWB(2), "act": PACT(2)}),
    "CNN, W2A2": lambda: (cnn(), {"weight": SAWB(2), "act": PACT(2)}),
    "ResNet-8, W2A2": lambda: (residual(), {"weight": SAWB(2), "act": PACT(2)}),
    "depthwise, W4A4": lambda: (depthwise(), {"weight": SAWB(4), "act": PACT(4)}),
    "MLP, W1A1": lambda: (mlp(), {"weight": SAWB(1), "act": PACT(1)}),
    "CNN, W1A1": lambda: (cnn(), {"weight": SAWB(1), "act": PACT(1)}),
    "CNN, W4A4, a scale a channel, ends W8A8": lambda: (cnn(), {"weight": LSQ(4), "act": LSQ(4), "per_channel": True}),
    f"MLP, W4A4{ON_POWERS}": lambda: (mlp(), {"weight": POWERS, "act": POWERS}),
    f"CNN, W4A4, a scale a channel{ON_POWERS}": lambda: (cnn(), {"weight": POWERS, "act": POWERS, "per_channel": True}),
    "MLP, W2A2, ends float": lambda: (mlp(), {"weight": SAWB(2), "act": PACT(2), "ends": None}),
}


def write(name: str, path: Path) -> tuple[Tensor, Tensor]:
    """The network `name`, calibrated, as QONNX; (inputs, what it gives)."""
    torch.manual_seed(0)
    network, options = NETWORKS[name]()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    network = folded(network) if name.endswith(ON_POWERS) else network  # type: ignore[arg-type]
    x = torch.randn(SAMPLES, 16) if name.startswith("MLP") else torch.randn(SAMPLES, 1, 8, 8)
    model = spequant.prepare(network.eval(), **options)  # type: ignore[arg-type]
    spequant.calibrate(model, [x], samples=SAMPLES, rule=percentile(99.0), reestimate=False)
    quantize_biases(model, x[:1])
    write_onnx(quant_graph(lower(model.eval(), x[:1])), path)
    with torch.no_grad():
        return x, model(x)


def equal(python: Path | str, name: str, folder: Path, precision: str = "fixed<48,16>") -> str:
    """How many classes of `name` hls4ml gives as torch does, in words; `python`: the interpreter that has it."""
    x, logits = write(name, folder / "net.onnx")
    np.save(folder / "inputs.npy", x.numpy())
    words = [str(python), str(EXAMPLE), "net.onnx", "inputs.npy", "project", precision]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"fails: {done.stderr.strip().splitlines()[-1][:200]}"
    classes = torch.tensor([int(c) for c in done.stdout.split()])
    return f"{int((classes == logits.argmax(1)).sum())} of {len(x)}"


def main(arguments: list[str]) -> None:
    python = "3.11"
    if arguments[:1] == ["--python"]:
        python, arguments = arguments[1], arguments[2:]
    with tempfile.TemporaryDirectory() as work:
        interpreter = environment(Path(work) / "env", *(arguments or REQUIREMENTS), python=python)
        print(
            "| network |", *(f"`{precision}` |" for precision in PRECISIONS), "\n|---" + "|---" * len(PRECISIONS) + "|"
        )
        for i, name in enumerate(NETWORKS):
            cells = []
            for precision in PRECISIONS:
                folder = Path(work) / f"{i}-{precision}"
                folder.mkdir()
                cells.append(equal(interpreter, name, folder, precision))
            print("|", name, "|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
