"""What a run would take, from some steps of it."""

import re

from spequant.app.cli import main


def test_dry_run_says_what_it_would_take_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["train", "digits-float", "--train.epochs", "7", "--data.held-out", "97", "--dry-run"])
    said = capsys.readouterr().out
    assert "1200 to train, 97 held out, 500 to test" in said and "steps       126 in 7 epochs" in said
    assert re.search(r"memory\s+\d+ MiB", said) and re.search(r"time\s+0\.\d\d hours", said)
    assert list(tmp_path.iterdir()) == []
