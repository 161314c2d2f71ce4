"""Runs and files opened: what they are told to be, and damaged or hostile ones refused."""

import json
import shutil

import pytest

from spequant.app.runs import evaluate_source, open_source
from spequant.app.runs.sources import about_run
from spequant.deploy import pack
from support.exported_run import accuracy, exported
from support.integer_networks import NEEDS_ONNXRUNTIME

pytestmark = NEEDS_ONNXRUNTIME
UNTOLD = "what network it holds"


def test_a_hostile_file_says_so(digits_run, tmp_path):
    source = open_source(exported(digits_run, "packed"))
    facts = about_run(source.recipe, source.test_set(), source.model)
    path = tmp_path / "net.packed"
    for change, message in (
        ({"classes": 2**40}, rf"{UNTOLD} .*{2**40} classes"),
        ({"classes": 60_000}, r"linear\.bias .* \(\(60000,\)"),
        ({"shape": [2**15, 8, 8]}, r"conv1\.weight .* 32768, "),
        ({"shape": "big"}, rf"{UNTOLD} .*big"),
        ({"recipe": {**facts["recipe"], "network": {"name": "os.system"}}}, rf"{UNTOLD} .*os\.system"),
        ({"recipe": {**facts["recipe"], "network": {"name": "resnet56"}}}, "file of another network"),
    ):
        pack(source.model, path, {**facts, **change})
        with pytest.raises(ValueError, match=message):
            open_source(path)
    pack(source.model, path)
    assert open_source(path).model is None
    with pytest.raises(ValueError, match=rf"{UNTOLD}.* --network package\.module:Object"):
        evaluate_source(path)


def test_a_damaged_or_absent_file_says_so(digits_run, tmp_path):
    data = bytearray(exported(digits_run, "onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=r"flipped\.onnx was changed"):
        open_source(tmp_path / "flipped.onnx")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.packed does not exist"):
        open_source(tmp_path / "nowhere.packed")


def test_a_run_of_another_device_is_read_on_the_cpu(digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "run")
    recipe = json.loads((digits_run / "recipe.json").read_text())
    recipe["train"]["device"] = "cuda:7"
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    assert accuracy(tmp_path / "run") == accuracy(digits_run)
