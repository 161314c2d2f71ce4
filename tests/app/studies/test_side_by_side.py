"""Runs side by side, in processes of their own: what they print, how many at a time, stopped, failed.

Lines of a shell stand in for the runs; test_sweep.py has real ones.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from spequant.app.studies import side_by_side as module
from spequant.app.studies.side_by_side import Job, all_finished, side_by_side, threads_each

UNTIL = "for _ in $(seq 600); do [ -e {} ] && {}; sleep 0.05; done; exit 9"
"""of a shell, half a minute at most"""


@pytest.fixture(autouse=True)
def shell(tmp_path, monkeypatch) -> None:
    """In place of `python -m spequant ARGUMENTS`: the arguments, carried out."""
    path = tmp_path / "python"
    path.write_text('#!/bin/bash\n[ "$1 $2" = "-m spequant" ] || exit 8\nshift 2\nexec bash -c "$*"\n')
    path.chmod(0o755)
    monkeypatch.setattr(module, "sys", SimpleNamespace(executable=str(path)))


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT as in a shell's foreground: a background job starts with it ignored, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def jobs(**lines: str) -> list[Job]:
    return [Job("r", Path(name), (line,)) for name, line in lines.items()]


def when(path: Path, *signals: int) -> threading.Thread:
    """Send this process `signals`, one after another, as soon as `path` is there and the first is waited for."""
    before = signal.getsignal(signals[0])

    def send() -> None:
        end = time.monotonic() + 30
        while (not path.exists() or signal.getsignal(signals[0]) is before) and time.monotonic() < end:
            time.sleep(0.01)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_each_line_has_the_name_of_its_run_and_each_run_its_exit_status(capfd):
    capfd.readouterr()  # what a plugin has printed
    assert side_by_side(jobs(one="echo 'one  epoch 1'; echo error >&2; exit 3", two="printf 'a\\nb'"), 1) == [3, 0]
    assert [line for line in capfd.readouterr().out.splitlines() if " ended" not in line] == [
        *("[1/2] one  started", "[1/2] one  epoch 1", "[1/2] one  error"),
        *("[2/2] two  started", "[2/2] two  a", "[2/2] two  b"),
    ]


def test_a_line_names_the_arm_its_place_and_what_is_left(capfd):
    capfd.readouterr()
    echo = "echo 'run-1a2b, seed 3  epoch 1/2  loss 1'; exit 4"
    assert side_by_side([Job("r", Path("run-1a2b"), (echo,), "SPEQ, seed 3")], 1) == [4]
    started, epoch, ended = capfd.readouterr().out.splitlines()
    assert started == "[1/1] SPEQ, seed 3  started" and epoch == "[1/1] SPEQ, seed 3  epoch 1/2  loss 1"
    assert ended == "[1/1] SPEQ, seed 3  ended (exit 4); 1 of 1 runs done, about 0 s left"


def test_so_many_at_a_time(tmp_path):
    """Two wait for each other; alone, each ends before the next one begins."""
    here, there = tmp_path / "a", tmp_path / "b"
    both = jobs(
        a=f"touch {here}; " + UNTIL.format(there, "exit 0"), b=f"touch {there}; " + UNTIL.format(here, "exit 0")
    )
    assert side_by_side(both, 2) == [0, 0]
    line = f"mkdir {tmp_path}/alone && sleep 0.05; rmdir {tmp_path}/alone"  # fails beside another one
    assert side_by_side(jobs(a=line, b=line, c=line), 1) == [0, 0, 0]
    with pytest.raises(ValueError, match="at_once is 0; expected 1"):
        side_by_side(both, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_passed_on_and_nothing_is_begun_after_it(number, tmp_path, capfd):
    started, saved = tmp_path / "started", tmp_path / "saved"
    loop = f"trap 'touch {saved}; echo saved; exit 130' INT; touch {started}; " + UNTIL.format("/nowhere", "exit 0")
    thread, before = when(started, number), signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="the same command"):
        side_by_side(jobs(one=loop, two=f"touch {tmp_path}/begun"), 1)
    thread.join()
    assert saved.exists() and "one  saved" in capfd.readouterr().out and not (tmp_path / "begun").exists()
    assert signal.getsignal(number) is before


def test_a_second_interruption_kills(tmp_path):
    started = tmp_path / "started"
    thread, begun = when(started, signal.SIGINT, signal.SIGINT), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(jobs(one=f"trap '' INT; touch {started}; exec sleep 60"), 1)
    thread.join()
    assert time.monotonic() - begun < 50


def test_those_that_are_not_finished_are_named():
    two = jobs(one="", two="")
    all_finished(two, [0, 0])
    with pytest.raises(ChildProcessError, match=r": two \(exit 3\);"):
        all_finished(two, [0, 3])


def test_threads_are_divided(monkeypatch):
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: 8)
    assert threads_each(1) == [] and threads_each(3) == ["--train.threads", "2"]
    assert threads_each(16) == ["--train.threads", "1"]
