"""`bench infer`: rows of every graph in every engine, and the arguments that it refuses."""

import json

import pytest

from spequant.app.cli import main
from support.exported_run import exported
from support.integer_networks import NEEDS_ONNXRUNTIME
from support.mixed_networks import NEEDS_ONNXSCRIPT

pytestmark = [NEEDS_ONNXRUNTIME, NEEDS_ONNXSCRIPT]


def rows_of(tmp_path, *args):
    main(["bench", "infer", *map(str, args), "--json", str(tmp_path / "rows.json")])
    return json.loads((tmp_path / "rows.json").read_text())


@pytest.mark.slow
def test_rows_of_a_file_at_two_widths(digits_run, tmp_path, capsys):
    pytest.importorskip("openvino")
    rows = rows_of(tmp_path, exported(digits_run, "packed"), "--rounds", 2, "--act-bits", 2, 4)
    assert [(r["engine"], r["name"]) for r in rows] == [
        (engine, name) for engine in ("onnxruntime", "openvino") for name in ("fp32", "static int8", "W2A2", "W2A4")
    ]
    assert all(r["ms"] > 0 and r["threads"] == 1 and r["batch"] == 1 and r["version"] for r in rows)
    assert rows[0]["times_faster_than_fp32"] == 1
    assert "instruction sets: " in capsys.readouterr().out


@pytest.mark.slow
def test_rows_at_the_trained_width_and_of_random_weights(digits_run, tmp_path):
    short = "--rounds", 1, "--engines", "onnxruntime"
    for source, names in (("onnx", ["fp32", "static int8", "A2"]), ("packed", ["fp32", "static int8", "W2A2"])):
        assert [r["name"] for r in rows_of(tmp_path, exported(digits_run, source), *short)] == names
    rows = rows_of(tmp_path, "--network", "resnet20", "--size", 32, "--batch", 3, "--clock", "processor", *short)
    assert [(r["name"], r["batch"]) for r in rows] == [(name, 3) for name in ("fp32", "static int8", "W2A2")]
    assert all(r["ms"] > 0 and r["clock"] == "processor" for r in rows)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "bench measures ''; expected train or infer"),
        (["infer", "--network", "resnet19"], "network is 'resnet19'; expected one of resnet8, resnet20"),
        (["infer", "--network", "load_weights"], "network is 'load_weights'; expected one of"),
        (["infer", "--network", "vgg16_bn", "--size", "8"], "size is 8: vgg16_bn"),
        (["infer", "--rounds", "0"], "rounds is 0; expected 1"),
    ],
)
def test_bad_arguments_are_named(args, message):
    with pytest.raises(SystemExit, match=message):
        main(["bench", *args])
