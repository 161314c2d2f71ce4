#!/usr/bin/env python3
"""Which versions of an engine load and run what is exported, with equal answers: small networks in every format, run in
an environment of that version.

usage: old_engines.py [--python 3.11] onnxruntime==1.15.1 openvino==2023.0.2 ...

Each requirement gets an environment of its own in a temporary folder, by uv, or else by venv and pip: where packages
come from is left to their settings. Prints a Markdown table: images with another class than torch's, and the largest
difference of an output in its standard deviations; or the engine's error.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spequant
from spequant.deploy import export_mixed, integer_graph, lower, quantize_biases, write_onnx, write_openvino
from spequant.models.resnet_cifar import CifarResNet
from spequant.quantizers import LSQ, PACT, SAWB, percentile

IMAGES = 64
RUN = """
import json, sys
from pathlib import Path
import numpy as np

engine, folder = sys.argv[1], Path(sys.argv[2])

def run(path, feed):
    if engine == "onnxruntime":
        import onnxruntime
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, feed)[0]
    try:
        from openvino.runtime import Core
    except ImportError:  # since 2026
        from openvino import Core
    compiled = Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(feed)[compiled.outputs[0]]

errors = {}
for path in sorted(p for p in folder.iterdir() if p.suffix in (".onnx", ".xml")):
    if path.suffix == ".xml" and engine == "onnxruntime":
        continue
    try:
        np.save(folder / f"{path.name}.npy", run(path, dict(np.load(folder / f"{path.stem}.npz"))))
    except Exception as error:
        errors[path.name] = str(error).strip().splitlines()[-1][:200]
print(json.dumps(errors))
"""


class Parts(nn.Module):
    """What integer graphs may hold beside a ResNet: pooling, concatenation, groups, clamps, a maximum, float parts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
        self.c, self.gate, self.head = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.relu(self.norm(self.a(x))), self.b(x).clamp(0, 6)], 1)
        y = self.c(F.max_pool2d(y, 2)).relu()
        y = y * torch.sigmoid(self.gate(y))
        return self.head(y.amax((2, 3)))


class Attention(nn.Module):
    """Patches, attention, layer norm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(1, 16, 2, stride=2), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(y)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        y = y + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((y + self.down(F.gelu(self.up(y)))).mean(1))


def prepared(network: nn.Module, x: Tensor, weight: Any, act: Any, **options: Any) -> nn.Module:
    model = spequant.prepare(network, weight=weight, act=act, **options)
    spequant.calibrate(model, [x], samples=len(x), rule=percentile(99.0))
    return model.eval()


def write_files(folder: Path) -> dict[str, np.ndarray]:
    """Every format into `folder`, with what goes in (NAME.npz); {file: what torch gives}."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 1, 8, 8), dtype=torch.uint8)
    x = (images.float() / 255 - 0.5) / 0.25
    resnet = CifarResNet(1, in_channels=1, widths=(4, 6, 8))
    models = {
        "resnet-w2a2": prepared(resnet, x, SAWB(2), PACT(2), ends=7),
        "resnet-w8a8": prepared(resnet, x, SAWB(8), PACT(8), ends=7),
        "parts-w4a4": prepared(Parts(), x, LSQ(4), LSQ(4), per_channel=True, ends=7),
    }
    expected: dict[str, np.ndarray] = {}
    for name, model in models.items():
        quantize_biases(model, x[:1])
        program = lower(model, x[:1])
        write_onnx(integer_graph(program), folder / f"{name}.onnx")
        write_openvino(integer_graph(program), folder / f"{name}.xml", {})
        _note(expected, folder, name, model, x, x)
    write_onnx(
        integer_graph(lower(models["resnet-w2a2"], x[:1]), preprocessing=((0.5,), (0.25,))), folder / "pixels.onnx"
    )
    _note(expected, folder, "pixels", models["resnet-w2a2"], x, images)
    mixed = {"mixed-attention": prepared(Attention(), x, SAWB(8), PACT(8)), "mixed-resnet": models["resnet-w8a8"]}
    for name, model in mixed.items():
        export_mixed(model, folder / f"{name}.onnx", [x])
        _note(expected, folder, name, model, x, x)
    return expected


def _note(expected: dict[str, np.ndarray], folder: Path, name: str, model: nn.Module, x: Tensor, given: Tensor) -> None:
    np.savez(folder / f"{name}.npz", input=given.numpy())
    with torch.no_grad():
        expected[name] = model(x).numpy()


def declared(path: Path) -> str:
    """The opset and the IR version of an ONNX file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return f"opset {model.opset_import[0].version}, IR {model.ir_version}"


def run_in(python: Path | str, engine: str, folder: Path, expected: dict[str, np.ndarray]) -> dict[str, str]:
    """{file: answers, in words} of `engine` in the environment of the interpreter `python`."""
    done = subprocess.run([str(python), "-c", RUN, engine, str(folder)], capture_output=True, text=True, check=True)
    errors = json.loads(done.stdout.strip().splitlines()[-1])
    rows = {name: f"does not load: {error}" for name, error in errors.items()}
    for path in sorted(folder.glob("*.npy")):
        got, wanted = np.load(path), expected[Path(path.stem).stem]
        unequal = int((got.argmax(1) != wanted.argmax(1)).sum())
        rows[path.stem] = f"{unequal} of {len(got)}, {np.abs(got - wanted).max() / wanted.std():.1g}"
        path.unlink()
    return rows


def environment(folder: Path, *needed: str, python: str) -> Path:
    """A new environment with what is `needed`; its interpreter. CalledProcessError."""
    interpreter = folder / "bin" / "python"
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "-q", "--python", python, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(interpreter), *needed], check=True)
    else:
        subprocess.run([f"python{python}", "-m", "venv", str(folder)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "-q", *needed], check=True)
    return interpreter


def main(arguments: list[str]) -> None:
    python = "3.11"
    if arguments[:1] == ["--python"]:
        python, arguments = arguments[1], arguments[2:]
    if not arguments or any("==" not in a for a in arguments):
        sys.exit(f"expected requirements such as onnxruntime==1.15.1, not {arguments}")
    with tempfile.TemporaryDirectory() as work:
        files = Path(work) / "files"
        files.mkdir()
        expected = write_files(files)
        print("| file | versions |", *arguments, sep=" | ", end=" |\n" + "|---" * (2 + len(arguments)) + "|\n")
        found = {}
        for i, requirement in enumerate(arguments):
            interpreter = environment(Path(work) / f"env{i}", requirement, "numpy<2", python=python)
            found[requirement] = run_in(interpreter, requirement.partition("==")[0], files, expected)
        for path in sorted(p for p in files.iterdir() if p.suffix in (".onnx", ".xml")):
            versions = declared(path) if path.suffix == ".onnx" else ""
            print("|", " | ".join([path.name, versions, *(rows.get(path.name, "") for rows in found.values())]), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
