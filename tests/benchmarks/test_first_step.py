"""The first step's table: rows with an empty cache, then in turn with a full one, as shares of float's seconds."""

from dataclasses import replace
from pathlib import Path

import pytest

import first_step
from first_step import FirstStep

SETTINGS = FirstStep("resnet8", batch=2, size=8, rows=("retrain",), threads=1, device="cpu", compile=False, rounds=3)


def test_ratios_are_of_the_processors_seconds_and_full_caches_come_in_turn(monkeypatch, capsys):
    empty, full = [(9.0, 40.0), (20.0, 62.0)], [(2.0, 4.0), (3.0, 5.0), (2.0, 3.0), (3.0, 6.0), (2.0, 9.0), (3.0, 4.0)]
    asked, times = [], iter([*empty, *full])
    monkeypatch.setattr(first_step, "measured", lambda row, _, cache: asked.append((row, cache)) or next(times))
    first_step.main(replace(SETTINGS, device="auto"))
    printed = capsys.readouterr().out
    assert [row for row, _ in asked] == ["float", "retrain"] * 4
    assert len({cache for _, cache in asked}) == 2  # one for each row
    assert "1.55" in printed and "1.25" in printed and "retrain, full cache: 3.0 s, 5.0 s" in printed


def test_no_round_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(first_step, "measured", None)
    with pytest.raises(SystemExit, match="rounds is 0; expected"):
        first_step.main(replace(SETTINGS, rounds=0))


@pytest.mark.parametrize(("name", "value"), [("steps", 3), ("at_once", 2), ("quick", True), ("json", Path("x.json"))])
def test_options_of_bench_train_that_a_first_step_has_not_are_refused(monkeypatch, name, value):
    monkeypatch.setattr(first_step, "measured", None)
    with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} is"):
        first_step.main(replace(SETTINGS, **{name: value}))


@pytest.mark.slow
def test_a_process_measures_its_first_step(tmp_path):
    seconds, processor = first_step.measured("retrain", SETTINGS, str(tmp_path))
    assert seconds > 0 and processor > 0
