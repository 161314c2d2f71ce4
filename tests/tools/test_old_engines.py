"""The check of old engines: on the engines at hand, and on the oldest that docs/deploy.md promises."""

import subprocess
import sys

import numpy as np
import pytest

from old_engines import environment, run_in, write_files
from spequant.deploy import integer_graph, write_onnx
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered
from support.mixed_networks import NEEDS_ONNXSCRIPT

OLDEST = {
    "onnxruntime==1.15.1": "onnx",
    "openvino==2023.1.0": "onnx xml",
    "openvino==2024.3.0": "onnx xml mixed",
}
"""{the oldest for Python 3.11: what it has to run}; onnxruntime 1.8 to 1.14 were tried by hand"""


@NEEDS_ONNXRUNTIME
def test_answers_are_counted_and_what_does_not_load_is_named(tmp_path):
    case = lowered("two bits")
    write_onnx(integer_graph(case.program), tmp_path / "good.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    right = case.model(case.x).detach().numpy()
    for name in ("good", "bad"):
        np.savez(tmp_path / f"{name}.npz", input=case.x.numpy())
    found = run_in(sys.executable, "onnxruntime", tmp_path, {"good": right, "bad": right})
    assert found["good.onnx"].startswith("0 of 32, ") and found["bad.onnx"].startswith("does not load: ")
    wrong = run_in(sys.executable, "onnxruntime", tmp_path, {"good": np.roll(right, 1, 1), "bad": right})
    assert int(wrong["good.onnx"].split()[0]) > 16


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return folder, write_files(folder)


@pytest.mark.slow
@NEEDS_ONNXRUNTIME
@NEEDS_ONNXSCRIPT
@pytest.mark.parametrize("requirement", OLDEST)
def test_the_oldest_engines_answer_as_torch(requirement, files, tmp_path):
    folder, expected = files
    try:
        python = environment(tmp_path / "env", requirement, "numpy<2", python="3.11")
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"{requirement} cannot be installed here: {error}")
    found = run_in(python, requirement.partition("==")[0], folder, expected)
    if requirement.startswith("openvino") and "mixed" not in OLDEST[requirement]:
        found = {name: words for name, words in found.items() if not name.startswith("mixed")}
    assert {name.rpartition(".")[2] for name in found} == set(OLDEST[requirement].split()) - {"mixed"}
    assert len(found) >= 6 and all(words.startswith("0 of 64, ") for words in found.values()), found
