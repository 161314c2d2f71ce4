"""QONNX graphs: their own package answers as the twin, and its cost tool reads their widths."""

import numpy as np
import pytest

from spequant.export import model_costs, quant_graph, read_onnx, write_onnx
from spequant.export.engines import ENGINES
from spequant.export.onnx_quant import fewest_bits
from support.integer_networks import QUANTIZED, lowered

WIDTHS = {
    "two bits": ("SCALEDINT<2>", "SCALEDINT<3>"),  # the odd codes of four levels need three bits
    "one bit": ("SCALEDINT<1>", "BIPOLAR"),
    "four bits": ("SCALEDINT<4>", "SCALEDINT<5>"),
    "lsq": ("SCALEDINT<3>", "SCALEDINT<2>"),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_qonnx_answers_alike_and_its_cost_tool_reads_it(name, tmp_path):
    pytest.importorskip("qonnx")
    from qonnx.util.inference_cost import inference_cost

    case, path = lowered(name), tmp_path / "net.onnx"
    write_onnx(quant_graph(case.program, about={"of": "a test"}), path)
    graph, head = read_onnx(path)
    assert head["about"] == {"of": "a test"} and "Quant" in {node.op_type for node in graph.graph.node}
    (got,) = ENGINES["qonnx"](path)({"input": case.x.numpy()})
    np.testing.assert_allclose(got, case.twin(case.x), rtol=1e-4, atol=1e-4)
    assert (got.argmax(1) == case.model(case.x).argmax(1).numpy()).all()
    if name in WIDTHS:
        cost = inference_cost(str(path), discount_sparsity=False)["total_cost"]
        acts, weights = WIDTHS[name]
        assert cost[f"op_mac_{acts}_{weights}"] == sum(c.macs for c in model_costs(case.model, case.x)[1:-1])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 3, (2, 0, 0)),
        (0, 1, (1, 0, 0)),
        (0, 5, (3, 0, 0)),
        (-3, 3, (3, 1, 1)),
        (-4, 3, (3, 1, 0)),
        (-2, 1, (2, 1, 0)),
    ],
)
def test_the_smallest_integer_type(low, high, expected):
    assert fewest_bits(low, high) == expected
