"""Capability: a network on tokens that was made in Python is evaluated, inspected, exported and timed on an .npz of its
inputs by name; a network of values on targets."""

import json
import re

import numpy as np
import pytest
import torch

import spequant
from spequant.app.cli import main
from spequant.quantizers import LSQ, percentile
from support.integer_networks import NEEDS_ONNXRUNTIME, prepared
from support.task_networks import Sentences, Stages

pytestmark = NEEDS_ONNXRUNTIME
NETWORK = ("--network", "support.task_networks:Sentences")
VALUES = "from support.task_networks import Stages\n\n\ndef values():\n    return Stages(2)\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """words.packed, words.npz: inputs by name and the network's own answers; values.onnx, values.npz with targets."""
    folder = tmp_path_factory.mktemp("named")
    torch.manual_seed(0)
    network = Sentences()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    inputs = {"input_ids": torch.randint(0, 20, (24, 6)), "attention_mask": torch.ones(24, 6, dtype=torch.long)}
    inputs["attention_mask"][::2, 4:] = 0
    model = spequant.prepare(network, weight=LSQ(4), act=LSQ(4), residual=None)
    spequant.calibrate(model, [inputs], samples=24, rule=percentile(99.0))
    spequant.export(model, folder / "words.packed", [inputs], classes=["good", "bad", "neither"])
    with torch.no_grad():
        labels = model.eval()(**inputs)["logits"].argmax(1)
    arrays = {name: x.numpy() for name, x in inputs.items()}
    np.savez(folder / "words.npz", **arrays, labels=labels.numpy())
    np.savez(folder / "ids.npz", input_ids=arrays["input_ids"])
    np.savez(folder / "images.npz", inputs=np.zeros((4, 3, 8, 8), np.float32), labels=np.zeros(4, int))
    x = torch.randn(24, 3, 8, 8)
    values = prepared(Stages(2), x, LSQ(4), LSQ(4))
    spequant.export(values, folder / "values.onnx", [x])
    spequant.export(values, folder / "values.packed", [x])
    with torch.no_grad():
        targets = values(x).numpy()
    np.savez(folder / "values.npz", inputs=x.numpy(), labels=targets)
    np.savez(folder / "other.npz", inputs=x.numpy(), labels=targets[:, :1])
    (folder / "networks.py").write_text(
        "from support.task_networks import Stages\n\n\ndef values():\n    return Stages(2)\n"
    )
    return folder


def ran(folder, monkeypatch, *args):
    monkeypatch.chdir(folder)
    main([*args, "--json", "rows.json"])
    return json.loads((folder / "rows.json").read_text())


def test_tokens_are_evaluated_and_inspected(folder, monkeypatch, capsys):
    (row,) = ran(folder, monkeypatch, "evaluate", "words.packed", *NETWORK, "--arrays", "words.npz")
    assert (row["accuracy"], row["samples"]) == (100, 24) and "samples 24" in capsys.readouterr().out
    (few,) = ran(folder, monkeypatch, "evaluate", "words.packed", *NETWORK, "--arrays", "words.npz", "--images", "5")
    assert few["samples"] == 5
    costs = ran(folder, monkeypatch, "inspect", "words.packed", *NETWORK, "--arrays", "words.npz")
    assert costs["total"]["macs"] > 0 and costs["classes"] == ["good", "bad", "neither"]
    assert "classes: 3: good; bad; neither" in capsys.readouterr().out
    main(["export", "words.packed", "--to", "packed", *NETWORK, "--arrays", "words.npz", "--out", "again.packed"])
    assert spequant.load("again.packed").classes == ("good", "bad", "neither")


def test_a_file_that_was_loaded_takes_them(folder):
    with np.load(folder / "words.npz") as arrays:
        inputs = {name: arrays[name] for name in arrays.files if name != "labels"}
        got = spequant.load(folder / "words.packed", network=Sentences())(inputs)
        assert (got["logits"].argmax(1).numpy() == arrays["labels"]).all()


@pytest.mark.slow
def test_tokens_are_exported_and_timed_in_an_engine(folder, monkeypatch):
    pytest.importorskip("onnxscript")
    data = "--arrays", "words.npz"
    monkeypatch.chdir(folder)
    main(["export", "words.packed", "--to", "mixed", *NETWORK, *data, "--out", "words.mixed.onnx"])
    (row,) = ran(folder, monkeypatch, "evaluate", "words.mixed.onnx", *data)
    assert row["accuracy"] > 95 and row["engine"] == "onnxruntime"
    with np.load("words.npz") as arrays:
        got = spequant.load("words.mixed.onnx")({name: arrays[name] for name in ("input_ids", "attention_mask")})
        assert (got["logits"].argmax(1).numpy() == arrays["labels"]).mean() > 0.95
        with pytest.raises(ValueError, match=r"inputs are .*labels; expected input_ids, attention_mask"):
            spequant.load("words.mixed.onnx")(arrays)
        few = {name: arrays[name].astype(np.int32) for name in ("input_ids", "attention_mask")}
        assert torch.equal(spequant.load("words.mixed.onnx")(few)["logits"], got["logits"])
        with pytest.raises(ValueError, match=r"input_ids is torch\.float32; words\.mixed\.onnx .*int64"):
            spequant.load("words.mixed.onnx")({name: x.astype(np.float32) for name, x in few.items()})
    for wrong in ("images.npz", "ids.npz"):
        with pytest.raises(SystemExit, match=rf"{wrong} holds .*words\.mixed\.onnx takes input_ids, attention_mask"):
            main(["evaluate", "words.mixed.onnx", "--arrays", wrong])
    options = *NETWORK, *data, "--rounds", "1", "--engines", "onnxruntime"
    rows = ran(folder, monkeypatch, "bench", "infer", "words.packed", *options)
    assert [row["name"] for row in rows] == ["fp32", "A4"]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("evaluate words.packed --arrays images.npz", r"images\.npz holds inputs; words\.packed takes input_ids, att"),
        ("evaluate words.packed --arrays ids.npz", "ids.npz holds input_ids; .* takes input_ids, attention_mask"),
        ("evaluate words.packed --arrays words.npz --engines onnxruntime", "inputs have names, .*--to mixed"),
        ("export words.packed --to onnx --arrays words.npz", "images have names; .*mixed"),
        ("export words.packed --to mixed --arrays words.npz --round-biases", "round_biases .*tokens"),
        ("bench infer words.packed --arrays words.npz --length 9", "length is 9"),
        ("inspect words.packed", r"--arrays FILE\.npz .*input_ids"),
    ],
)
def test_what_does_not_fit_is_named(args, named, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match=named):
        main([*args.split(), *NETWORK])


def test_values_are_measured_by_how_far_they_are_off(folder, monkeypatch, capsys):
    (row,) = ran(folder, monkeypatch, "evaluate", "values.onnx", "--arrays", "values.npz")
    assert 0 < row["mean_absolute_error"] < 0.2 and row["r2"] > 99 and "accuracy" not in row
    network = "--network", "networks.py:values"
    capsys.readouterr()
    main(["export", "values.packed", "--to", "onnx", *network, "--arrays", "values.npz", "--out", "again.onnx"])
    printed = capsys.readouterr().out
    assert "arg-max" not in printed and re.search(r"24 samples .*: output by at most [\d.e-]+, [\d.e-]+ in", printed)
    with pytest.raises(SystemExit, match=r"targets are .*\(24, 1\); .*\(24, 2\)"):
        main(["evaluate", "values.onnx", "--arrays", "other.npz"])
