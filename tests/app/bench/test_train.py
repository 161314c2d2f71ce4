"""`spequant bench train`: its rows against known times, each kind of step; not how fast anything is.

Processes stand in for the rows' own but where a test is slow.
"""

import json
from dataclasses import replace

import pytest

from spequant.app.bench.train import STEPS, BenchTrain, bench_train, ready
from spequant.app.cli import main
from support.bench_workers import Worker, answering
from support.reporters import Said

FIELDS = {"name", "step_ms", "ratio_to_float", "peak_mib", "graphs", "threads", "device", "dtype"}
TINY = ["--network", "resnet8", "--batch", "4", "--size", "8", "--rounds", "2", "--threads", "1", "--device", "cpu"]
SETTINGS = BenchTrain("resnet8", batch=2, size=8, rounds=1, threads=1, device="cpu", compile=False)


def test_rows_are_medians_over_the_rounds(monkeypatch, tmp_path, capsys):
    answering(monkeypatch, {"float": [3.0, 0.010, 0.090, 0.020], "speq": [4.0, 0.030, 0.026, 0.025]})
    path = tmp_path / "rows.json"
    main(["bench", "train", *TINY, "--rounds", "3", "--rows", "speq", "--steps", "7", "--json", str(path)])
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert list(rows) == ["float", "speq", "input"]
    shared = {"threads": 1, "device": "cpu", "dtype": "bf16"}
    assert rows["float"] == {"name": "float", "step_ms": 20, "ratio_to_float": 1, "peak_mib": 3, "graphs": 1, **shared}
    ours = {"name": "speq", "step_ms": 26, "ratio_to_float": 1.3, "peak_mib": 4, "graphs": 1}
    assert rows["speq"] == ours | shared and set(rows["float"]) == FIELDS
    assert rows["input"]["ratio_to_float"] == pytest.approx(rows["input"]["step_ms"] / 20, abs=1e-3)
    assert rows["input"]["step_ms"] > 0 and shared.items() <= rows["input"].items()
    one_round = [("float", 2, 1), ("speq", 2, 1)]  # the rows take turns
    assert Worker.asked == 3 * one_round + [("float", 7, 1), ("speq", 7, 1)]
    printed = capsys.readouterr().out
    assert "26.0 │ 1.30" in printed and "ms per batch" in printed
    assert "resnet8, W2A2, batch 4, bf16, cpu" in printed


def test_processes_at_once_are_a_row(monkeypatch, tmp_path, capsys):
    """Threads are divided among them."""
    answering(monkeypatch, {"float": [3.0, 0.010]})
    path = tmp_path / "rows.json"
    options = [*TINY, "--threads", "4", "--rows", "float", "--at-once", "2", "--json", str(path)]
    main(["bench", "train", *options])
    one, two, _ = json.loads(path.read_text())
    assert (one["name"], two["name"]) == ("float", "float x2") and (one["peak_mib"], two["peak_mib"]) == (3, 6)
    assert {threads for *_, threads in Worker.asked} == {2, 4} and {steps for _, steps, _ in Worker.asked} == {5, 0}
    assert "float: 2 at once take 2.00 times" in capsys.readouterr().out


def test_a_row_that_does_not_run_costs_no_other(monkeypatch):
    seconds = {"float": [3.0, 0.010], "lsq": ["ValueError: bits is 9"], "speq": [3.0, 0.020]}
    answering(monkeypatch, seconds)
    settings = replace(SETTINGS, rows=("lsq", "speq"))
    rows = bench_train(settings, said := Said())
    assert [row["name"] for row in rows] == ["float", "speq", "input"]
    assert said.lines == ["lsq: not measured, ValueError: bits is 9"]
    rows = ("float (1/3)", "speq (2/3)", "lsq (3/3)")
    assert said.phases == [*(f"{row}: warming up" for row in rows), "timing, 1 rounds"]
    seconds["float"] = ["OSError: x"]
    with pytest.raises(ChildProcessError, match=r"float .*OSError: x"):
        bench_train(settings)


def test_quick_measures_two_rows_in_three_rounds(monkeypatch, capsys):
    answering(monkeypatch, {"float": [3.0, 0.010], "retrain": [3.0, 0.012]})
    options = ["--quick", "--threads", "1", "--device", "cpu", "--batch", "4"]
    main(["bench", "train", *options])
    assert [name for name, steps, _ in Worker.asked if steps] == ["float", "retrain"] * 3
    assert "resnet8, W2A2, batch 4" in capsys.readouterr().out
    for wrong in (["--rows", "speq"], ["--rounds", "5"]):
        with pytest.raises(SystemExit, match=f"{wrong[0][2:]} is .*quick"):
            main(["bench", "train", *options, *wrong])


@pytest.mark.parametrize("name", [name for name in STEPS if not name.endswith("eager")])
def test_every_row_takes_a_step(name):
    step, fixed_bytes = ready(STEPS[name], SETTINGS)
    before = fixed_bytes()
    assert float(step()[0]) > 0
    assert fixed_bytes() > before > 4 * 75_000  # momenta, as well as the parameters


def test_every_row_is_compiled_and_eager():
    half = len(STEPS) // 2
    assert [f"{name} eager" for name in list(STEPS)[:half]] == list(STEPS)[half:]
    assert [kind.compiled for kind in STEPS.values()] == [True] * half + [False] * half


@pytest.mark.slow
def test_rows_of_processes_that_compile(tmp_path, capsys):
    path = tmp_path / "rows.json"
    main(["bench", "train", *TINY, "--rows", "speq", "--steps", "2", "--json", str(path)])
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert list(rows) == ["float", "speq", "input"]
    for name in ("float", "speq"):
        row = rows[name]
        assert set(row) == FIELDS and row["step_ms"] > 0 and row["peak_mib"] > 0
        assert (row["threads"], row["device"], row["dtype"]) == (1, "cpu", "bf16")
    assert rows["float"]["graphs"] == rows["speq"]["graphs"] == 1
    assert rows["float"]["ratio_to_float"] == 1


@pytest.mark.slow
def test_processes_at_once(tmp_path, capsys):
    path = tmp_path / "rows.json"
    main(["bench", "train", *TINY, "--rows", "float", "--no-compile", "--at-once", "2", "--json", str(path)])
    one, two, _ = json.loads(path.read_text())
    assert (one["name"], two["name"]) == ("float", "float x2") and set(two) == FIELDS
    assert two["peak_mib"] == pytest.approx(2 * one["peak_mib"], abs=0.2) and two["step_ms"] > 0
    gain = 2 * one["step_ms"] / two["step_ms"]
    assert f"float: 2 at once take {gain:.2f} times" in capsys.readouterr().out


@pytest.mark.slow
def test_a_process_that_does_not_run_says_why():
    rows = bench_train(replace(SETTINGS, bits=9, rows=("lsq",)), said := Said())
    assert [row["name"] for row in rows] == ["float", "input"]
    assert len(said.lines) == 1 and said.lines[0].startswith("lsq: not measured, ValueError: bits is 9; expected")


@pytest.mark.slow
def test_bert_takes_steps():
    pytest.importorskip("transformers")
    rows = bench_train(BenchTrain("bert6", batch=2, rows=("retrain",), rounds=1, device="cpu", compile=False))
    assert [row["name"] for row in rows] == ["float", "retrain"] and not any(row["graphs"] for row in rows)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--rows", "sqeq"], "rows has 'sqeq'; .*'float', 'retrain', 'speq'"),
        (["--rounds", "0"], "rounds is 0; expected 1"),
        (["--at-once", "0"], "at_once is 0; expected 1"),
        (["--batch", "1"], "batch is 1; expected 2"),
        (["--steps", "-1"], "steps is -1; expected 0"),
        (["--device", "tpu9"], "device is 'tpu9'; .*cuda:N"),
        (["--threads", "0"], "threads is 0; expected 1"),
        (["--network", "resnet19"], "network is 'resnet19'; .*resnet8, resnet20"),
    ],
)
def test_bad_arguments_are_named(args, named):
    with pytest.raises(SystemExit, match=named):
        main(["bench", "train", *args])
