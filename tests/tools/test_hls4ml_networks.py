"""Networks through hls4ml: their files hold what it knows; converted and compiled, they answer as torch does."""

import shutil
import subprocess

import pytest

from hls4ml_networks import NETWORKS, REQUIREMENTS, equal, write
from old_engines import environment
from spequant.deploy import read_onnx
from support.integer_networks import NEEDS_ONNXRUNTIME

pytestmark = NEEDS_ONNXRUNTIME
KNOWN = {"Quant", "BipolarQuant", "BatchNormalization", "Conv", "MatMul", "MaxPool", "Flatten", "Add", "Relu"}
"""operators that hls4ml 1.3 converts; GlobalAveragePool as examples/hls4ml_run.py writes it"""


@pytest.mark.parametrize("name", NETWORKS)
def test_files_hold_operators_that_hls4ml_knows(name, tmp_path):
    x, logits = write(name, tmp_path / "net.onnx")
    assert len(x) == len(logits) == 64
    assert {node.op_type for node in read_onnx(tmp_path / "net.onnx")[0].graph.node} <= KNOWN | {"GlobalAveragePool"}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    try:
        return environment(tmp_path_factory.mktemp("env") / "env", *REQUIREMENTS, python="3.11")
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"hls4ml cannot be installed here: {error}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NETWORKS)
def test_hls4ml_answers_as_torch(name, python, tmp_path):
    assert equal(python, name, tmp_path) == "64 of 64"
