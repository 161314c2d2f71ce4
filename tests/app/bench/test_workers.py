"""Processes that run the same steps: their answers, against known times and for real."""

from functools import partial

import pytest

from spequant.app.bench import workers
from spequant.app.bench.train import STEPS, BenchTrain, ready
from spequant.app.bench.workers import WorkerGroup
from support.bench_workers import Worker, answering

SETTINGS = BenchTrain("resnet8", batch=2, size=8, rounds=1, threads=1, device="cpu", compile=False)
FLOAT = partial(ready, STEPS["float"], SETTINGS)


def test_the_slowest_of_several_processes_counts(monkeypatch):
    answering(monkeypatch, {"float": [3.0, 0.010]})
    group = WorkerGroup("float", FLOAT, "cpu", 4, 2).wait()
    assert (group.label, group.peak, group.graphs) == ("float x2", 6 * 2**20, 1)
    group.workers[1].answers = [3.0, 0.025]
    assert group.ask(3) == 0.025
    assert Worker.asked == [("float", 3, 2)] * 2  # threads are divided among them


def test_a_process_that_died_is_named(monkeypatch):
    answering(monkeypatch, {"float": [3.0, 0.010, "its process died"]})
    group = WorkerGroup("float", FLOAT, "cpu", 1, 2).wait()
    assert group.error is None and group.ask(3) == 0.010
    with pytest.raises(ChildProcessError, match=r"row 'float x2': .*rows.* at_once"):
        group.ask(3)
    group.close()
    assert not any(worker.open for worker in group.workers)


def test_seconds_of_a_step():
    calls: list[int] = []
    assert 0 <= workers.seconds_of(lambda: calls.append(1)) < 1 and calls == [1]


@pytest.mark.slow
def test_a_process_that_dies_is_named():
    group = WorkerGroup("float", FLOAT, "cpu", 1, 2).wait()
    assert group.error is None and group.ask(3) > 0
    group.workers[1].process.kill()
    with pytest.raises(ChildProcessError, match="row 'float x2': its process died"):
        group.ask(3)
    group.close()
