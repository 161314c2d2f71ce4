"""Curves of runs: a line a run, a colour an arm, the label once."""

import json

from spequant.app.studies import pictures


def test_curves_are_those_of_the_runs(tmp_path, monkeypatch):
    figures, blank = [], pictures.blank
    monkeypatch.setattr(pictures, "blank", lambda *size: figures.append(blank(*size)) or figures[0])
    arms = {"one": [tmp_path / "a", tmp_path / "b"], "two": [tmp_path / "c"]}
    for i, folder in enumerate(f for folders in arms.values() for f in folders):
        folder.mkdir()
        rows = [{"kind": "start"}] + [
            {"kind": "epoch", "epoch": e, "task": i + e, "train_accuracy": 50 * e} for e in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pictures.draw_curves(arms, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    loss, accuracy = figures[0].axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[1, 2], [2, 3], [3, 4]] and loss.get_yscale() == "log"
    assert {tuple(line.get_ydata()) for line in accuracy.lines} == {(50, 100)}
    assert [line.get_color() for line in loss.lines] == ["C0", "C0", "C1"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["one", "two"]
