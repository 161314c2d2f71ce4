"""`spequant bench infer` of a network with random weights: a row for each width and fp32. Of runs: test_deploy.py."""

import pytest

from spequant.bench import infer
from spequant.bench.infer import Infer, bench_infer

SETTINGS = Infer(network="resnet8", image=8, bits=(2, 4), engines=("onnxruntime",), rounds=2, batch=2)


def test_a_random_network_at_two_widths(monkeypatch):
    """A graph that does nothing stands for fp32's, whose exporter takes seconds."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def idle(network, x):
        ends = [onnx.helper.make_tensor_value_info(name, 1, tuple(x.shape)) for name in ("input", "output")]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["input"], ["output"])], "g", ends[:1], ends[1:]
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)

    monkeypatch.setattr(infer, "float_onnx", idle)
    rows = bench_infer(SETTINGS)
    assert [row["name"] for row in rows] == ["fp32", "W2A2", "W4A4"]
    assert all(row["ms"] > 0 and (row["threads"], row["batch"]) == (1, 2) and row["version"] for row in rows)
    assert rows[0]["times_faster_than_fp32"] == 1


@pytest.mark.slow
def test_a_random_network_against_fp32():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rows = bench_infer(SETTINGS)
    assert [row["name"] for row in rows] == ["fp32", "W2A2", "W4A4"]
    assert rows[0]["file_bytes"] > 2 * rows[1]["file_bytes"]


@pytest.mark.parametrize("name", ["image", "length", "batch", "threads", "rounds"])
def test_numbers_that_make_no_measurement_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected 1"):
        bench_infer(Infer(**{name: 0}))
