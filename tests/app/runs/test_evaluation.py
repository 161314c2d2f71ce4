"""Accuracy of a run or a file, in every engine and at any activation width."""

import pytest

from spequant.app.runs import evaluate_source, export_source
from support.exported_run import exported
from support.integer_networks import NEEDS_ONNXRUNTIME
from support.reporters import Said

pytestmark = NEEDS_ONNXRUNTIME
WIDTHS = (1, 2, 3, 4, 8)


def test_any_activation_width_from_one_file(digits_run, tmp_path):
    run, packed, integer = digits_run, exported(digits_run, "packed"), exported(digits_run, "onnx")
    rows = {path: evaluate_source(path, act_bits=WIDTHS) for path in (run, packed, integer)}
    assert [row["act_bits"] for row in rows[packed]] == list(WIDTHS)
    assert [r["accuracy"] for r in rows[run]] == [r["accuracy"] for r in rows[packed]]
    assert len({row["accuracy"] for row in rows[packed]}) > 2
    for ours, theirs in list(zip(rows[packed], rows[integer], strict=True))[1:]:
        assert theirs["accuracy"] == pytest.approx(ours["accuracy"], abs=1.0)
    export_source(packed, "onnx", tmp_path / "four.onnx", act_bits=4)
    (row,) = evaluate_source(tmp_path / "four.onnx")
    assert row["act_bits"] == 4 and row["accuracy"] == pytest.approx(rows[integer][3]["accuracy"], abs=1.0)
    said = Said()
    (row,) = evaluate_source(tmp_path / "four.onnx", act_bits=[2], reporter=said)  # the file knows its trained width
    assert said.phases == ["loading network and data", (testing := "testing 500 samples in onnxruntime at A2")]
    assert said.counts == {testing: (1, 1)}
    assert row["accuracy"] == pytest.approx(rows[integer][1]["accuracy"], abs=1.0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"act_bits": [9]}, r"bits is 9; .* 1 to 8"),
        ({"engine": "tflite"}, "engine is 'tflite'; expected torch, onnxruntime, openvino"),
        ({"images": 0}, "images is 0; expected 1"),
        ({"threads": 0}, "threads is 0; expected 1"),
    ],
)
def test_values_out_of_range_are_named(digits_run, how, message):
    with pytest.raises(ValueError, match=message):
        evaluate_source(exported(digits_run, "packed"), **how)
