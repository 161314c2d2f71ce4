"""Whole studies, as they are: every one at its smallest, killed, and with runs beside each other."""

import json
import signal
import subprocess
import sys
import time

import pytest

from spequant.app.studies.study import STUDIES
from support.study_files import rows_of, smoke

pytestmark = pytest.mark.slow


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_whole(name, tmp_path):
    assert smoke(name, tmp_path / "study", *([] if name == "fig3" else ["--seeds", "0"]))


def test_figures_of_trained_networks_fit_together(tmp_path):
    """table1 with two seeds, and any-precision with the same runs."""
    rows = smoke("table1", tmp_path)
    assert len(rows) == 2 * 9 and {(r["weights"], r["activations"]) for r in rows} == {
        (w, a) for w in "248" for a in "248"
    }
    gaps = [float(s["refitted"]) - float(r["refitted"]) for r, s in zip(rows[:9], rows[9:], strict=True)]
    assert [float(r["refitted, minus Retrain"]) for r in rows[9:]] == pytest.approx(gaps)
    assert {r["seeds"] for r in rows} == {"2"} and all(r["bounds held, deviation"] for r in rows)
    before = len(list(tmp_path.rglob("result.json")))
    rows = smoke("fig2", tmp_path, "--resume")
    assert len(list(tmp_path.rglob("result.json"))) == before  # Retrain was there
    assert len(rows) == len({r["layer"] for r in rows}) == 19
    moved = tmp_path.rename(tmp_path.with_name("moved"))  # with the data that the runs name
    rows = smoke("any-precision", moved, "--resume")
    assert [row["activations"] for row in rows] == ["2", "4", "8"]
    name = "one network, SPEQ"
    for row in rows:
        gap = float(row[name]) - float(row["trained at this width"])
        assert float(row[f"{name}, minus it"]) == pytest.approx(gap) and row[f"{name}, +- to it (95 %)"]


def test_a_killed_study_goes_on(tmp_path):
    command = [sys.executable, "-m", "spequant", "study", "table3", "--smoke", "--seeds", "0", "--only", "*/Retrain"]
    command += ["*/SPEQ", "--out", str(tmp_path / "study")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(tmp_path.rglob("result.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.rglob("result.json")) and not (tmp_path / "study" / "table3.csv").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["arm"] for row in rows_of(tmp_path / "study", "table3")] == ["Retrain", "SPEQ"]


def test_runs_in_processes_of_their_own_are_the_runs_one_by_one(tmp_path):
    (tmp_path / "of-ten-classes.th").touch()  # which made-up images of two do not start from
    options = ["--seeds", "0", "--only", "*/Retrain", "*/SPEQ", "--threads", "1"]
    options += ["--weights", str(tmp_path / "of-ten-classes.th")]
    alone = smoke("table3", tmp_path / "alone", *options)
    both = smoke("table3", tmp_path / "both", *options, "--at-once", "2")
    own = [{name: row[name] for name in ("arm", "test accuracy", "held out", "minus Retrain")} for row in both]
    assert own == [{name: row[name] for name in own[0]} for row in alone]
    starts = [json.loads(p.read_text())[0]["command"] for p in (tmp_path / "both").rglob("environment.json")]
    assert sorted(" train " in start for start in starts) == [False, True, True]  # the float network is trained before
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    smoke("table3", tmp_path / "both", *options, "--at-once", "2", "--resume")
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
