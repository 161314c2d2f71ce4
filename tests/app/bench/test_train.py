"""`spequant bench train`: its rows against known times, each kind of step; not how fast anything is.

Processes stand in for the rows' own but where a test is slow.
"""

import json
from typing import ClassVar

import pytest
import torch

from spequant.app.bench import train
from spequant.app.bench.train import STEPS, BenchTrain, Row, bench_train, ready
from spequant.app.cli import main

FIELDS = {"name", "step_ms", "ratio_to_float", "peak_mib", "graphs", "threads", "device", "dtype"}
TINY = ["--network", "resnet8", "--batch", "4", "--image", "8", "--rounds", "2", "--threads", "1", "--device", "cpu"]
SETTINGS = BenchTrain("resnet8", batch=2, image=8, rounds=1, threads=1, device="cpu", compile=False)


class Worker:
    """In place of a row's process. seconds: of a step, by row, call after call, the last one for all further calls;
    a text in their place: what went wrong."""

    seconds: ClassVar[dict[str, list]]
    asked: ClassVar[list[tuple[str, int, int]]]

    def __init__(self, name, settings):
        self.name, self.threads, self.calls, self.open = name, settings.threads, 0, True

    def ask(self, steps):
        self.asked.append((self.name, steps, self.threads))

    def hear(self):
        known = self.seconds[self.name]
        found = known[min(self.calls, len(known) - 1)]
        self.calls += 1
        if isinstance(found, str):
            return found, 0, 0
        return None, 2**20 * found if self.calls == 1 else found, 1

    def close(self):
        self.open = False


@pytest.fixture
def workers(monkeypatch) -> type[Worker]:
    """The first number of each row is its peak, MiB."""
    monkeypatch.setattr(train, "Worker", Worker)
    monkeypatch.setattr(Worker, "seconds", {}, raising=False)
    monkeypatch.setattr(Worker, "asked", [], raising=False)
    return Worker


def test_rows_are_medians_over_the_rounds(workers, tmp_path, capsys):
    workers.seconds = {"float": [3.0, 0.010, 0.090, 0.020], "speq": [4.0, 0.030, 0.026, 0.025]}
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
    assert workers.asked == 3 * one_round + [("float", 7, 1), ("speq", 7, 1)]
    printed = capsys.readouterr().out
    assert "26.0 │ 1.30" in printed and "ms a batch" in printed
    assert "resnet8, W2A2, batch 4, bf16, cpu" in printed


def test_processes_at_once_are_a_row_of_the_slowest(workers, tmp_path, capsys):
    """Threads are divided among them."""
    workers.seconds = {"float": [3.0, 0.010]}
    path = tmp_path / "rows.json"
    options = [*TINY, "--threads", "4", "--rows", "float", "--at-once", "2", "--json", str(path)]
    main(["bench", "train", *options])
    one, two, _ = json.loads(path.read_text())
    assert (one["name"], two["name"]) == ("float", "float x2") and (one["peak_mib"], two["peak_mib"]) == (3, 6)
    assert {threads for *_, threads in workers.asked} == {2, 4} and {steps for _, steps, _ in workers.asked} == {5, 0}
    assert "float: 2 at once take 2.00 times" in capsys.readouterr().out
    row = Row("float", SETTINGS, 2)
    row.workers[1].seconds = {"float": [3.0, 0.025]}
    assert row.ask(3) == 0.025


def test_a_row_whose_process_dies_is_named(workers):
    workers.seconds = {"float": [3.0, 0.010, "its process died"]}
    row = Row("float", SETTINGS, 2)
    assert row.error is None and row.ask(3) == 0.010
    with pytest.raises(ChildProcessError, match=r"row 'float x2': .*rows.* at_once"):
        row.ask(3)
    row.close()
    assert not any(worker.open for worker in row.workers)


def test_a_row_that_does_not_run_costs_no_other(workers):
    said: list[str] = []
    workers.seconds = {"float": [3.0, 0.010], "lsq": ["ValueError: bits is 9"], "speq": [3.0, 0.020]}
    settings = BenchTrain(**{**vars(SETTINGS), "rows": ("lsq", "speq")})
    found = bench_train(settings, said.append)
    assert [row["name"] for row in found] == ["float", "speq", "input"]
    assert said == ["lsq: not measured, ValueError: bits is 9"]
    workers.seconds["float"] = ["OSError: x"]
    with pytest.raises(ChildProcessError, match=r"float .*OSError: x"):
        bench_train(settings)


def takes_a_step(name: str) -> None:
    step, fixed = ready(STEPS[name], SETTINGS, torch.device("cpu"))
    before = fixed()
    assert float(step()[0]) > 0
    assert fixed() > before > 4 * 75_000  # momenta beside the parameters


@pytest.mark.parametrize("name", [name for name in STEPS if not name.endswith("eager") and name != "brevitas"])
@pytest.mark.filterwarnings("ignore")  # of torch.ao
def test_every_row_takes_a_step(name):
    takes_a_step(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_brevitas_takes_a_step():
    pytest.importorskip("brevitas")
    takes_a_step("brevitas")


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
def test_a_process_that_dies_is_named():
    row = Row("float", SETTINGS, 2)
    assert row.error is None and row.ask(3) > 0
    row.workers[1].process.kill()
    with pytest.raises(ChildProcessError, match="row 'float x2': its process died"):
        row.ask(3)
    row.close()


@pytest.mark.slow
def test_a_process_that_does_not_run_says_why():
    said: list[str] = []
    found = bench_train(BenchTrain(**{**vars(SETTINGS), "bits": 9, "rows": ("lsq",)}), said.append)
    assert [row["name"] for row in found] == ["float", "input"]
    assert len(said) == 1 and said[0].startswith("lsq: not measured, ValueError: bits is 9; expected")


@pytest.mark.slow
def test_bert_takes_steps():
    pytest.importorskip("transformers")
    found = bench_train(BenchTrain("bert6", batch=2, rows=("retrain",), rounds=1, device="cpu", compile=False))
    assert [row["name"] for row in found] == ["float", "retrain"] and not any(row["graphs"] for row in found)


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
