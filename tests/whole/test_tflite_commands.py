"""Commands on a .tflite file that was made in Python."""

import json

import numpy as np
import pytest

import spequant
from spequant.app.cli import main
from support.integer_networks import lowered

NETWORK = "from support.integer_networks import small\n"


@pytest.mark.slow
def test_a_file_is_inspected_evaluated_and_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    case = lowered("two bits")
    spequant.export(case.model, "net.tflite", [case.x])
    np.savez("test.npz", inputs=case.x.numpy(), labels=case.twin(case.x).argmax(1).numpy())
    (tmp_path / "networks.py").write_text(NETWORK)
    main(["inspect", "net.tflite", "--json", "costs.json"])
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert costs["total"]["macs"] == sum(layer["macs"] for layer in costs["layers"]) > 0
    assert "bytes of memory" in capsys.readouterr().out
    main(["evaluate", "net.tflite", "--engines", "litert", "tflm", "--arrays", "test.npz", "--json", "rows.json"])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["engine"], row["accuracy"]) for row in rows] == [("litert", 100), ("tflm", 100)]
    main(["bench", "infer", "net.tflite", "--network", "networks.py:small", "--rounds", "1", "--json", "times.json"])
    rows = json.loads((tmp_path / "times.json").read_text())
    assert [(row["name"], row["engine"]) for row in rows] == [(n, "litert") for n in ("fp32", "W8A8", "A2")]
