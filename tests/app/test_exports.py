"""What the commands export, evaluate and inspect print and write, and the arguments that they refuse."""

import json
import re
import shutil

import numpy as np
import pytest

from spequant.app.cli import main
from spequant.deploy.engines import ENGINES
from support.exported_run import exported
from support.integer_networks import NEEDS_ONNXRUNTIME
from support.special_files import PLACES

pytestmark = NEEDS_ONNXRUNTIME


@pytest.fixture(scope="module")
def files(digits_run):
    """What arguments may speak of, by name."""
    return {"run": digits_run, "packed": exported(digits_run, "packed"), "integer": exported(digits_run, "onnx")}


def test_exports_are_verified_and_lie_beside_their_source(digits_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    main(["export", str(run), "--to", "packed"])
    verdict, file, command = capsys.readouterr().out.splitlines()
    assert "the logits of 500 images are equal" in verdict and file.startswith(f"{run / 'model.packed'}  ")
    assert f"spequant evaluate {run / 'model.packed'}, or spequant.load" in command
    main(["export", str(run / "model.packed"), "--to", "onnx", "--images", "100", "--verbose"])
    printed = capsys.readouterr().out
    assert "onnxruntime: arg-max equal on" in printed and "of 100 images" in printed
    assert re.search(r"onnxruntime: output: [\d.e-]+ deviations from the network's \(limit of scores 0\.1[,)]", printed)
    assert "layer1.0.conv1 [0, 3]" in printed and "times smaller than in fp32" in printed
    assert {path.name for path in run.iterdir()} - {path.name for path in digits_run.iterdir()} == {
        "model.packed",
        "model.onnx",
    }


def test_an_engine_that_answers_otherwise_fails_loudly(files, tmp_path, monkeypatch, capsys):
    """A wrong engine: the comparison is printed, the command fails, no file is left."""
    honest = ENGINES["onnxruntime"]
    monkeypatch.setitem(ENGINES, "onnxruntime", lambda model, threads=None: lambda feed: shifted(honest(model)(feed)))

    def shifted(outputs):
        return [np.roll(y, 1, 1) if y.dtype == np.float32 and y.shape[1:] == (10,) else y for y in outputs]

    with pytest.raises(SystemExit, match="onnxruntime gives another arg-max"):
        main(["export", str(files["packed"]), "--to", "onnx", "--out", str(tmp_path / "net.onnx")])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("onnxruntime: arg-max equal on") and not list(tmp_path.iterdir())


def test_evaluate_prints_and_writes_a_row_a_width(files, tmp_path, capsys):
    main(["evaluate", str(files["packed"]), "--act-bits", "3", "4", "--json", str(tmp_path / "rows.json")])
    printed, rows = capsys.readouterr().out, json.loads((tmp_path / "rows.json").read_text())
    assert re.findall(r"torch  (A\d+)", printed) == ["A3", "A4"] and [row["act_bits"] for row in rows] == [3, 4]
    assert all(f"{row['accuracy']:.2f} %" in printed for row in rows)


@pytest.mark.parametrize("command", ["evaluate {packed}", "inspect {packed}", "bench infer {packed}", "bench train"])
@pytest.mark.parametrize("what", ["a folder", "a socket", "no folder", "a circle of links"])
def test_no_work_is_done_for_rows_that_have_no_place(files, command, what, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.Module.__call__", lambda *_: pytest.fail("the work was done"))
    path = PLACES[what].make(tmp_path, "rows.json")
    with pytest.raises(SystemExit, match=PLACES[what].refused):
        main([*command.format(**files).split(), "--json", str(path)])


def test_inspect(files, tmp_path, capsys):
    totals = []
    for source in files.values():
        main(["inspect", str(source), "--json", str(tmp_path / "costs.json")])
        printed, costs = capsys.readouterr().out, json.loads((tmp_path / "costs.json").read_text())
        assert "layer1.0.conv1" in printed and "times the bit operations" in printed
        assert sum(layer["macs"] for layer in costs["layers"]) == costs["total"]["macs"]
        totals.append(costs["total"])
    assert totals[0] == totals[1] and totals[0]["times_smaller_than_fp32"] > 10
    assert 3 < totals[2]["times_smaller_than_fp32"] < 4  # an integer graph holds a byte a weight


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", "{packed}", "--engines", "tflite"], "engine is 'tflite'; expected torch, onnxruntime, openvino"),
        (["evaluate", "{packed}", "--images", "0"], "images is 0; expected 1"),
        (["evaluate", "{packed}", "--threads", "0"], "threads is 0; expected 1"),
        (["evaluate", "{packed}", "--json", "nowhere/a.json"], "a.json .* nowhere does not exist"),
        (["evaluate", "nowhere.onnx"], "nowhere.onnx does not exist"),
        (["inspect", "nowhere.packed"], "nowhere.packed does not exist"),
        (["export", "{packed}", "--to", "packed", "--act-bits", "4"], "act_bits .* packed file"),
        (["export", "{integer}", "--to", "openvino"], "net.onnx is .* --to onnx; expected a run's folder"),
        (["export", "{packed}", "--to", "openvino", "--out", "{packed}.bin"], "net.packed.bin'; .* in .xml"),
        (["export", "{packed}", "--to", "onnx", "--out", "net.bin"], "net.bin'; .* --to onnx .* in .onnx"),
        (["export", "{packed}", "--to", "packed", "--out", "net.onnx"], "net.onnx'; .* but .onnx, .tflite, .xml"),
        (["export", "{packed}", "--to", "onnx", "--out", "nowhere/net.onnx"], "the folder nowhere does not exist"),
        (["export", "{run}", "--to", "packed", "--out", "{run}/model.safetensors"], "a file of the run itself"),
        (["export", "{run}/../digits-float", "--to", "packed"], "a float run, of digits-float"),
    ],
)
def test_bad_arguments_are_named(files, args, message):
    with pytest.raises(SystemExit, match=message.replace(".", r"\.").replace(r" \.* ", " .* ")):
        main([a.format(**files) for a in args])
