"""The first step's table: each row with an empty cache and a full one, as shares of float's processor time."""

from dataclasses import replace

import pytest

import first_step
from spequant.app.commands.bench import BenchTrain

SETTINGS = BenchTrain("resnet8", batch=2, size=8, rows=("retrain",), threads=1, device="cpu", compile=False)


def test_ratios_are_of_the_processors_seconds(monkeypatch, capsys):
    asked, times = [], iter([(9.0, 40.0), (2.0, 4.0), (20.0, 62.0), (3.0, 5.0)])
    monkeypatch.setattr(first_step, "measured", lambda row, _, cache: asked.append((row, cache)) or next(times))
    first_step.main(replace(SETTINGS, device="auto"))
    printed = capsys.readouterr().out
    assert [row for row, _ in asked] == ["float", "float", "retrain", "retrain"]
    assert len({cache for _, cache in asked}) == 2  # one for each row
    assert "1.55" in printed and "1.25" in printed and "retrain, full cache: 3.0 s, 5.0 s" in printed


@pytest.mark.slow
def test_a_process_measures_its_first_step(tmp_path):
    seconds, processor = first_step.measured("retrain", SETTINGS, str(tmp_path))
    assert seconds > 0 and processor > 0
