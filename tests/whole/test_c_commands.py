"""Commands on a C program that was made in Python."""

import json

import numpy as np
import pytest

import spequant
from spequant.app.cli import main
from support.integer_networks import lowered


@pytest.mark.slow
def test_a_folder_is_inspected_and_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    case = lowered("two bits")
    spequant.export(case.model, "net", [case.x], "c")
    np.savez("test.npz", inputs=case.x.numpy(), labels=case.twin(case.x).argmax(1).numpy())
    main(["inspect", "net", "--json", "costs.json"])
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert costs["total"]["macs"] == sum(layer["macs"] for layer in costs["layers"]) > 0
    printed = capsys.readouterr().out
    head = json.loads((tmp_path / "net" / "manifest.json").read_text())
    assert f"{head['constants']:,} bytes of constants" in printed and f"{head['stack']:,} bytes of stack" in printed
    main(["evaluate", "net", "--arrays", "test.npz", "--json", "rows.json"])
    assert [(row["engine"], row["accuracy"]) for row in json.loads((tmp_path / "rows.json").read_text())] == [
        ("cc", 100)
    ]
