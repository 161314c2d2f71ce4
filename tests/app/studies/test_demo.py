"""The command `demo`: what it trains, prints and writes, and that it removes only what is its own."""

import re
import sys
from dataclasses import replace

import pytest

from spequant.app.cli import main
from spequant.app.recipes import RECIPES
from spequant.methods import SPEQ
from support.made_up_runs import Run

OWN = {"digits-float", "digits-w2a2-retrain-seed0", "digits-w2a2-speq-seed0"}


def folders(out) -> set[str]:
    return {p.name for p in out.iterdir() if p.is_dir()}


def test_demo_writes_table_curves_metrics_and_networks(tmp_path, monkeypatch, capsys):
    """Of few images."""
    for name in ("digits-float", "digits-w2a2-retrain", "digits-w2a2-speq"):
        recipe = RECIPES[name]()
        quant = replace(recipe.quant, percentile=99.9 if recipe.quantized else None)
        short = replace(recipe, quant=quant, data=replace(recipe.data, images=128))
        monkeypatch.setitem(RECIPES, name, lambda short=short: short)
    monkeypatch.chdir(tmp_path)
    main(["demo", "--epochs", "1", "--seeds", "0"])
    printed = capsys.readouterr().out
    assert re.search(r"SPEQ W2A2\s+│ \d+\.\d\d\s+│ - ", printed) and "paired" not in printed
    out = tmp_path / "runs" / "demo"
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(out.glob("*/metrics.jsonl"))) == len(list(out.glob("*/model.safetensors"))) == 3
    assert folders(out) == OWN


def test_a_demo_takes_the_place_of_an_earlier_one(tmp_path, monkeypatch, capsys):
    """Its runs are made up."""
    run = Run(
        lambda recipe: 90.0 + isinstance(recipe.method, SPEQ.Settings) * (1 + recipe.train.seed) + recipe.train.seed
    )
    monkeypatch.setattr("spequant.app.studies.demo.run", run)
    monkeypatch.setattr("spequant.app.studies.demo.draw_curves", lambda folders, out: out.touch())
    main(["demo", "--seeds", "0", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(r"SPEQ W2A2\s+│ 92\.00\s+│ 1\.41", printed) and "paired: +1.50 ± 6.35 (2 pairs)" in printed
    (tmp_path / "mine").mkdir()
    main(["demo", "--seeds", "0", "--out", str(tmp_path)])
    assert folders(tmp_path) == {"mine", *OWN} and len(run.trained) == 5 + 3


@pytest.mark.slow
def test_a_demo_of_two_seeds(tmp_path, capsys):
    """Whole."""
    main(["demo", "--epochs", "1", "--seeds", "0", "1", "--out", str(tmp_path)])
    assert re.search(r"SPEQ W2A2\s+│ \d+\.\d\d\s+│ \d+\.\d\d.*paired: ", capsys.readouterr().out, re.S)
    assert len(list(tmp_path.glob("*/metrics.jsonl"))) == len(list(tmp_path.glob("*/model.safetensors"))) == 5


@pytest.mark.parametrize("name", ["thesis.tex", "digits-float/model.safetensors"])
def test_the_demo_does_not_remove_what_is_not_its_own(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(SystemExit, match=f"out is {tmp_path}, "):
        main(["demo", "--out", str(tmp_path)])
    assert (tmp_path / name).exists()


def test_a_demo_without_seeds_is_refused():
    with pytest.raises(SystemExit, match=r"seeds is \(0, 0\); expected"):
        main(["demo", "--seeds", "0", "0"])


@pytest.mark.parametrize("package", ["matplotlib.figure", "scipy.special"])
def test_a_demo_that_cannot_show_its_results_trains_nothing(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=r"pip install 'spequant\[report\]'"):
        main(["demo", "--out", str(tmp_path / "demo")])
    assert not (tmp_path / "demo").exists()
