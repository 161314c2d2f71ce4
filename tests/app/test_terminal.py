"""What the commands say: plain lines in a log, one that moves on a terminal; tables that are not cut off."""

import re
import sys
from types import SimpleNamespace

import pytest
from rich.table import Table

from spequant.app import terminal
from spequant.app.commands.screen import moves, print_table
from spequant.app.terminal import Terminal, in_time, numbers_in_words, title_of

ROW = {
    **{"epoch": 2, "epochs": 5, "task": 0.51234, "distill": 0.25, "train_accuracy": 81.5},
    **{"held_out_accuracy": 79.25, "images_per_second": 1234.5, "seconds": 7.0},
}


def test_a_line_an_epoch_in_a_log(capsys):
    capsys.readouterr()  # what a plugin has printed
    with Terminal("a-run") as reporter:
        reporter.step(None)  # which reads no losses
        reporter.epoch(ROW)
        reporter.epoch({k: v for k, v in ROW.items() if k != "held_out_accuracy"})
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "a-run  epoch 2/5  loss 0.5123  distill 0.2500  train 81.50 %  held-out accuracy 79.25 %  "
        "1234 a second  21 s left"
    )
    assert second == first.replace("  held-out accuracy 79.25 %", "")


def test_a_phase_is_a_line_in_a_log_the_first_time(capsys):
    capsys.readouterr()
    with Terminal("a-run", 2, 3) as reporter:
        for text in ("calibrating", "measuring", "calibrating"):
            reporter.phase(text)
            assert list(reporter.track("ab", 2)) == ["a", "b"]
        reporter.epoch(ROW)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["[2/3] a-run  calibrating", "[2/3] a-run  measuring"]
    (epoch,) = printed.out.splitlines()
    assert epoch.endswith("21 s left, about 56 s of all runs")  # 7 seconds an epoch: 3 of this one, 5 of the last


@pytest.mark.parametrize(
    ("terminal_name", "notebook", "move"), [("xterm", None, True), ("dumb", None, False), ("xterm", "1", False)]
)
def test_lines_move_on_terminals_alone(terminal_name, notebook, move, monkeypatch, capsys):
    on_a_terminal(monkeypatch)
    assert moves()
    monkeypatch.setenv("TERM", terminal_name)
    if notebook is not None:
        monkeypatch.setenv("JPY_PARENT_PID", notebook)
    assert moves() == move
    with Terminal("a-run") as reporter:
        reporter.phase("calibrating")
    assert ("\x1b" in capsys.readouterr().out) == move


def on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)


def plain(printed: str) -> str:
    """Without colours and moves."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", printed)


def test_a_bar_on_a_terminal_reads_the_losses_once_a_second(monkeypatch, capsys):
    read, now = [], [100.0]
    progress = SimpleNamespace(done=0.5, epochs=5, row=lambda: read.append(now[0]) or ROW)
    on_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Terminal("a-run") as reporter:
        reporter.phase("calibrating")
        assert list(reporter.track("ab", 2)) == ["a", "b"]
        for seconds in (0.0, 0.5, 0.5, 0.25):
            now[0] += seconds
            reporter.step(progress)
        reporter.epoch(ROW)
    shown = plain(capsys.readouterr().out)
    assert read == [100.0, 101.0] and "a-run  epoch 2/5  loss 0.5123" in shown and "a-run  calibrating" in shown
    assert "loss 0.512  acc 81.5 %  1234 a second" in shown


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (12000, "3 h 20 min")]
)
def test_times_in_words(seconds, words):
    assert in_time(seconds) == words


def test_lines_of_a_run_name_its_seed_once():
    assert title_of("a", 0) == "a, seed 0" and title_of("a-seed1", 1) == "a-seed1"


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"test_accuracy": 91.2}, "test accuracy 91.20 %"),
        ({"held_out_f1": 8.0, "held_out_exact_match": 7.0}, "held-out f1 8.00 %  held-out exact match 7.00 %"),
        ({}, ""),
    ],
)
def test_figures_in_words(figures, said):
    assert numbers_in_words(figures) == said


def test_a_table_in_a_log_is_as_wide_as_it_needs(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("name", "figure")
    table.add_row("x" * 150, "y" * 50)
    print_table(table)
    assert "x" * 150 in (printed := capsys.readouterr().out) and "y" * 50 in printed
