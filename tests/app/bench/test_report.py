"""What `bench infer` prints and writes. Its rows of files: test_infer.py; of `bench train`: test_train.py."""

import json

import pytest

from spequant.app.bench import infer, report
from spequant.app.bench.report import Infer, print_bench_infer


@pytest.mark.parametrize(("sets", "told"), [(["avx2", "avx512"], "avx2, avx512"), ([], "not known")])
def test_rows_are_printed_and_written(sets, told, monkeypatch, tmp_path, capsys):
    row = {"name": "W2A2", "engine": "onnxruntime", "version": "1.2", "ms": 1.234, "times_faster_than_fp32": 3.456}
    row |= {"file_bytes": 12345, "batch": 2, "threads": 1, "instruction_sets": sets}
    monkeypatch.setattr(report, "bench_infer", lambda settings, reporter: [row])
    print_bench_infer(Infer(batch=2, json=tmp_path / "rows.json"))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("onnxruntime 1.2", "1.23", "3.46", "12,345", f"instruction sets: {told}"))
    assert json.loads((tmp_path / "rows.json").read_text()) == [row]


def test_a_random_network_at_two_widths(monkeypatch, tmp_path, capsys):
    """A graph that does nothing stands for fp32's, whose exporter takes seconds, and for its 8 bits."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def idle(network, x):
        ends = [onnx.helper.make_tensor_value_info(name, 1, tuple(x.shape)) for name in ("input", "output")]
        node = onnx.helper.make_node("Identity", ["input"], ["output"])
        graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)

    monkeypatch.setattr(infer, "float_onnx", idle)
    monkeypatch.setattr(infer, "static_int8", lambda path, feed: path)
    settings = Infer(network="resnet8", size=8, bits=(2, 4), engines=("onnxruntime",), rounds=2, batch=2)
    print_bench_infer(Infer(**{**vars(settings), "json": tmp_path / "rows.json"}))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in rows] == ["fp32", "static int8", "W2A2", "W4A4"]
    assert all(row["ms"] > 0 and (row["threads"], row["batch"]) == (1, 2) and row["version"] for row in rows)
    assert rows[0]["times_faster_than_fp32"] == 1 and "batch 2, 1 thread" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["size", "length", "batch", "threads", "rounds"])
def test_numbers_that_make_no_measurement_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected 1"):
        print_bench_infer(Infer(**{name: 0}))
