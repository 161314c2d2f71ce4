"""What `bench infer` prints of rows that are given. Of `bench train`: test_train.py."""

import json

import pytest

from spequant.bench import report
from spequant.bench.report import Infer, print_bench_infer


@pytest.mark.parametrize(("sets", "told"), [(["avx2", "avx512"], "avx2, avx512"), ([], "not known")])
def test_rows_are_printed_and_written(sets, told, monkeypatch, tmp_path, capsys):
    row = {"name": "W2A2", "engine": "onnxruntime", "version": "1.2", "ms": 1.234, "times_faster_than_fp32": 3.456}
    row |= {"file_bytes": 12345, "batch": 2, "threads": 1, "instruction_sets": sets}
    monkeypatch.setattr(report, "bench_infer", lambda settings: [row])
    print_bench_infer(Infer(batch=2, json=tmp_path / "rows.json"))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("onnxruntime 1.2", "1.23", "3.46", "12,345", f"instruction sets: {told}"))
    assert json.loads((tmp_path / "rows.json").read_text()) == [row]
