"""Integer ONNX graphs: onnxruntime computes the twin's codes, op by op and end to end, and fuses them."""

import collections

import numpy as np
import pytest
import torch

from spequant.deploy import Twin, integer_graph, lower, write_onnx
from spequant.deploy.grids import stored
from spequant.deploy.operations import Add
from spequant.models import mobilenet_v2, vgg16_bn
from spequant.quantizers import PACT, SAWB
from support.clipping import skip_if_clipped
from support.integer_networks import NEEDS_ONNXRUNTIME, QUANTIZED, lowered, prepared, session, small, unequal

pytestmark = NEEDS_ONNXRUNTIME
FLOAT_LEFT = {"Mul": 2, "QuantizeLinear": 2, "DequantizeLinear": 3, "Add": 1, "Relu": 1, "GlobalAveragePool": 1}
INTEGER = {"Clip", "QLinearConv", "QLinearAdd", "QGemm", "Transpose", "Flatten", "MaxPool", "Concat", "ReduceMax"}


def behind_an_island(op) -> bool:
    return op.in_float or any(behind_an_island(i) for i in op.inputs)


def kinds_left(graph, path):
    import onnx

    session(graph, path)
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", QUANTIZED)
def test_onnxruntime_answers_as_the_twin(name, tmp_path):
    case = lowered(name)
    program, x = case.program, case.x
    assert not any(unequal(program, x).values())
    skip_if_clipped(program)
    # End to end all codes are equal, but for ties behind a float mean (DoReFa's steps make many of them).
    integer = [op for op in program.ops if op.grid is not None and not behind_an_island(op)]
    got, *codes = session(integer_graph(program, taps=integer)).run(None, {"input": x.numpy()})
    values, twin = case.twin.everything(x), case.twin(x)
    assert all((c == stored(values[op], op.grid)).all() for c, op in zip(codes, integer, strict=True))
    np.testing.assert_allclose(got, twin.numpy(), rtol=1e-3, atol=2e-2 * float(twin.std()))
    if QUANTIZED[name][2].get("ends", 8) is not None:
        left = kinds_left(integer_graph(program), tmp_path / "optimised.onnx")
        assert all(left[k] <= FLOAT_LEFT.get(k, 0) for k in set(left) - INTEGER), left


@pytest.mark.slow
@pytest.mark.parametrize("network", [vgg16_bn, mobilenet_v2])
def test_other_networks(network):
    x = torch.randn(8, 3, 32, 32)
    program = lower(prepared(network(), x, SAWB(4), PACT(4)), x[:1])
    assert not any(unequal(program, x).values())
    skip_if_clipped(program)
    (got,) = session(integer_graph(program)).run(None, {"input": x.numpy()})
    np.testing.assert_allclose(got, Twin(program)(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_uint8_image_may_be_the_input():
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    x = (images.float() / 255 - 0.4) / 0.3
    model = prepared(small(), x)
    graph = integer_graph(lower(model, x[:1]), preprocessing=((0.4,), (0.3,)))
    (got,) = session(graph).run(None, {"input": images.numpy()})
    assert (got.argmax(1) == model(x).argmax(1).numpy()).mean() >= 31 / 32


def test_taps_give_every_layers_codes(tmp_path):
    import onnx

    case = lowered("two bits")
    skip_if_clipped(case.program)
    x, taps = case.x[:4], [op for op in case.program.ops if op.grid is not None]
    write_onnx(integer_graph(case.program, taps=taps), tmp_path / "tapped.onnx")
    _, *codes = session(onnx.load(tmp_path / "tapped.onnx")).run(None, {"input": x.numpy()})
    values = case.twin.everything(x)
    assert all((c == stored(values[op], op.grid)).all() for c, op in zip(codes, taps, strict=True))
    assert sum(isinstance(op, Add) for op in taps) == 4  # two of three sums are read at 2 and at 8 bits, one in float


def test_stored_codes_lose_nothing():
    case = lowered("eight bits")
    values = case.twin.everything(case.x)
    for op in case.program.integer_ops:
        back = stored(values[op], op.grid).astype(int) - op.grid.zero
        assert np.array_equal(back, values[op].numpy())
