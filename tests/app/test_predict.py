"""The command predict: its table, its CSV, its exit status."""

import csv

import numpy as np
import pytest

from spequant.app.cli import main
from support.image_folders import needs_timm

Image = pytest.importorskip("PIL.Image")
pytestmark = needs_timm


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two pictures, a damaged one and a text, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(f"photos/{name}")
    (tmp_path / "photos/c.jpg").write_text("no image")
    (tmp_path / "photos/notes.txt").write_text("no image, and not said to be one")
    return tmp_path


def test_a_table_and_a_csv(photos, digits_run, capsys):
    main(["predict", str(digits_run), "photos/a.png", "photos/b*", "--top", "2", "--csv", "answers.csv"])
    lines = [line.strip(" │\n") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [line.startswith("photos/") for line in lines] == [True, False, True, False]
    rows = list(csv.DictReader((photos / "answers.csv").read_text().splitlines()))
    assert [(row["image"], row["rank"]) for row in rows] == [(f"photos/{n}.png", r) for n in "ab" for r in "12"]
    assert all(row["name"] == row["class"] and 0 <= float(row["probability"]) <= 1 for row in rows)
    assert f"{100 * float(rows[0]['probability']):.2f}"[:-1] in lines[0]


def test_images_without_an_answer_end_the_command_with_their_names(photos, digits_run, capsys):
    with pytest.raises(SystemExit, match=r"2 of 4 .*nowhere\.png: .*photos/c\.jpg: ") as stopped:
        main(["predict", str(digits_run), "photos", "nowhere.png", "--csv", "answers.csv"])
    assert isinstance(stopped.value.code, str)  # exit status 1
    assert "photos/b.png" in capsys.readouterr().out
    errors = [row["image"] for row in csv.DictReader((photos / "answers.csv").read_text().splitlines()) if row["error"]]
    assert errors == ["nowhere.png", "photos/c.jpg"]


def test_a_csv_without_a_place_is_refused_before_the_work(photos, monkeypatch):
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        main(["predict", "no-run", "photos", "--csv", "nowhere/a.csv"])
    with pytest.raises(SystemExit, match="no-run does not exist"):
        main(["predict", "no-run", "photos"])
