"""The command zoo."""

import json

import pytest

from spequant.app.cli import main
from spequant.deploy.zoo import names


def test_the_networks_are_listed(capsys, tmp_path):
    main(["zoo", "--json", str(tmp_path / "cards.json")])
    shown = capsys.readouterr().out
    assert all(f"zoo/{name}" in shown for name in names())
    assert [card["name"] for card in json.loads((tmp_path / "cards.json").read_text())] == names()


@pytest.mark.parametrize("name", ["resnet8-digits-w2a2", "zoo/resnet8-digits-w2a2"])
def test_a_card_says_how_the_network_was_made(name, capsys):
    main(["zoo", name])
    shown = capsys.readouterr().out
    for fact in ("98.60 (the file)", "of 500 images", "python tools/make_zoo.py", "CC BY 4.0"):
        assert fact in shown


def test_a_card_says_how_accurate_one_file_is_at_several_widths(capsys):
    main(["zoo", "resnet8-cifar10-w2-any"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "resnet8, W2A2 to A8" in shown
    assert "A2 80.02, A3 82.04, A4 82.09" in shown and "--act-bits" in shown


def test_an_unknown_name_is_an_error():
    with pytest.raises(SystemExit, match=r"resnet9-digits-w2a2.*resnet8-digits-w2a2"):
        main(["zoo", "resnet9-digits-w2a2"])


def test_an_export_lies_in_the_working_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["export", "zoo/resnet8-digits-w2a2", "--to", "qonnx", "--images", "4"])
    assert [path.name for path in tmp_path.iterdir()] == ["resnet8-digits-w2a2.qonnx.onnx"]
