"""The command fit: what a network takes as C, whether it fits, what would fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.cli import main
from spequant.app.commands.fit import BOARDS, Fit, bytes_of
from spequant.app.recipes import RECIPES
from spequant.app.recipes.serial import to_json
from spequant.deploy.c.footprint import CODE, STACK

ZOO = "zoo/resnet8-digits-w2a2"


def test_it_is_what_an_export_takes(tmp_path, capsys):
    main(["fit", ZOO, "--board", "microbit-v2", "--json", str(tmp_path / "fit.json")])
    shown, facts = capsys.readouterr().out, json.loads((tmp_path / "fit.json").read_text())
    assert shown.count("fits") == 2 and "layer3.0.conv2" in shown and "nRF52833" in shown
    assert facts["fits"] and facts["others"] == {}
    assert facts["room"] == {"flash": 512 * 1024, "ram": 128 * 1024}
    assert facts["flash"] == facts["constants"] + CODE and facts["ram"] == facts["arena"] + facts["scores"] + STACK
    pytest.importorskip("onnx")
    main(["export", ZOO, "--to", "c", "--images", "2", "--out", str(tmp_path / "net")])
    manifest = json.loads((tmp_path / "net" / "manifest.json").read_text())
    assert (manifest["constants"], manifest["arena"]) == (facts["constants"], facts["arena"])
    assert sum(size for _, size in facts["peak"]) <= facts["arena"] and facts["scores"] == 40
    assert sum(facts["layers"].values()) < facts["constants"] + 1024


def test_a_board_that_is_too_small_ends_the_command_with_1(capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", ZOO, "--board", "arduino-uno"])
    shown = capsys.readouterr().out
    assert end.value.code == 1 and "too much" in shown and "--act-bits 1" in shown and "memory:" in shown


def test_what_would_fit_is_named(tmp_path, capsys):
    """A recipe, before any training: with fewer bits."""
    recipe = RECIPES["digits-w2a2-speq"]()
    wide = replace(recipe, name="wide", quant=replace(recipe.quant, weight_bits=4, act_bits=4, percentile=99.9))
    (tmp_path / "wide.json").write_text(to_json(wide))
    with pytest.raises(SystemExit) as end:
        main(["fit", str(tmp_path / "wide.json"), "--flash", "38K", "--json", str(tmp_path / "fit.json")])
    assert end.value.code == 1
    facts = json.loads((tmp_path / "fit.json").read_text())
    assert facts["network"] == "W4A4" and list(facts["others"]) == ["W3A3", "W2A2"]
    assert facts["others"]["W2A2"]["flash"] <= 38 * 1024 < facts["others"]["W3A3"]["flash"] < facts["flash"]
    assert "would fit with W2A2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits-float"], "is float"),
        (["digits-w2a2-speqq"], "did you mean"),
        (["nowhere.json"], "nowhere.json does not exist"),
        ([ZOO, "--ram", "many"], "ram is 'many'"),
        ([ZOO, "--flash", "0"], "flash is '0'"),
        ([ZOO, "--json", "nowhere/fit.json"], "nowhere"),
    ],
)
def test_what_cannot_be_planned_is_refused(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said):
        main(["fit", *words])


@pytest.mark.parametrize(("text", "value"), [("4096", 4096), ("64K", 65536), ("1M", 2**20), ("2 KiB", 2048)])
def test_bytes_are_read_in_their_usual_forms(text, value):
    assert bytes_of("ram", text) == value


def test_numbers_come_before_a_board():
    settings = Fit(Path("x"), board="arduino-uno", ram="4K")
    assert (settings.flash_bytes, settings.ram_bytes) == (32 * 1024, 4096)
    assert Fit(Path("x")).flash_bytes is None and all(
        board.source and board.ram < board.flash for board in BOARDS.values()
    )
