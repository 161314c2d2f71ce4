"""Engines: OpenVINO computes the twin's codes in int8, and leaves signals alone. onnxruntime: formats/test_onnx.py."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from spequant.deploy import integer_graph, lower
from spequant.deploy.compare import forced
from spequant.deploy.engines import ENGINES, compile_openvino, run_in_parts, versions
from spequant.models import mobilenet_v2, resnet8, vgg16_bn
from spequant.quantizers import PACT, SAWB
from support.integer_networks import NEEDS_ONNXRUNTIME, QUANTIZED, lowered, prepared

pytestmark = NEEDS_ONNXRUNTIME
NEEDS_OPENVINO = pytest.mark.skipif(not find_spec("openvino"), reason="OpenVINO is not installed")
QUICK = ("two bits", "float ends")


def openvino(graph):
    return ENGINES["openvino"](graph, 1)


@NEEDS_OPENVINO
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in QUANTIZED])
def test_openvino_answers_as_the_twin_code_by_code(name):
    case = lowered(name)
    found = forced(case.program, case.x, openvino)
    assert all(f.unequal == f.ties for f in found.values())
    assert sum(f.unequal for f in found.values()) <= 5
    (got,) = openvino(integer_graph(case.program).SerializeToString())({"input": case.x.numpy()})
    assert (got.argmax(1) == case.twin(case.x).argmax(1).numpy()).mean() >= 0.98


@NEEDS_OPENVINO
@pytest.mark.slow
@pytest.mark.parametrize("network", [vgg16_bn, mobilenet_v2])
def test_openvino_on_other_networks(network):
    x = torch.randn(8, 3, 32, 32)
    program = lower(prepared(network(), x, SAWB(4), PACT(4)), x[:1])
    # Untrained, with biases of many times their sums: fp32 then rounds at other places than ties, in a few codes.
    assert sum(f.unequal for f in forced(program, x, openvino).values()) <= 5


@NEEDS_OPENVINO
def test_openvino_runs_convolutions_and_additions_in_int8():
    """On the compiled graph. Left in float: the option-A shortcuts' identity, which OpenVINO takes apart into pooling
    and a 1 x 1 convolution, the quantization of the input and of the mean, the mean, the output."""
    x = torch.randn(16, 1, 8, 8)
    graph = integer_graph(lower(prepared(resnet8(in_channels=1), x), x[:1])).SerializeToString()
    compiled = ThreadPoolExecutor(1).submit(compile_openvino, graph, 1).result()
    in_float, in_integers = set(), []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = {
            key: op.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision", "originalLayersNames")
        }
        kind, name = info["layerType"], info["originalLayersNames"]
        if info["runtimePrecision"] in ("u8", "i8"):
            in_integers.append(kind)
        elif kind in ("Convolution", "FullyConnected", "Eltwise") and "pad" not in name:
            in_float.add((kind, name))
    # The first layer is there once, though two quantizers read it: `percentile` gives them ranges that agree.
    assert in_integers.count("Convolution") == 7 and in_integers.count("FullyConnected") == 1
    assert {kind for kind, _ in in_float} <= {"Eltwise"}
    assert all("DequantizeLinear" in name for _, name in in_float)  # of the option-A shortcuts


@NEEDS_OPENVINO
def test_signals_reach_python_while_openvino_is_there():
    """A signal stack of OpenVINO's in the main thread is too small for Python's handler: a segmentation fault."""
    case = lowered("two bits")
    run = openvino(integer_graph(case.program).SerializeToString())
    run({"input": case.x.numpy()})
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1] and len(run({"input": case.x.numpy()})[0]) == len(case.x)


@pytest.mark.parametrize(("batch", "sizes"), [(None, [5]), (2, [2, 2, 1])])
def test_a_graph_of_a_fixed_batch_is_run_in_parts(batch, sizes):
    seen = []

    def run(feed):
        seen.append(len(feed["a"]))
        return [feed["a"] + feed["b"], feed["b"]]

    a, b = np.arange(5), np.arange(5) * 10
    total, second = run_in_parts(run, {"a": a, "b": b}, batch)
    assert seen == sizes and total.tolist() == (a + b).tolist() and second.tolist() == b.tolist()


def test_versions_are_of_the_engines_at_hand():
    assert {"onnxruntime"} <= set(versions()) <= set(ENGINES)
