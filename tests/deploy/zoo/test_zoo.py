"""The zoo: each file is the one of its card, small, and as accurate as the card says, in every format."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import spequant
from spequant.app.runs import evaluate_source, export_source
from spequant.deploy import FORMATS
from spequant.deploy.formats import format_named
from spequant.deploy.zoo import ZOO_FOLDER, card_of, file_of, names, network_of, of_zoo

MOST = 5_000_000  # bytes of all files


@pytest.fixture
def root(request):
    """Of the data of a network; the test is skipped where they are absent."""
    return request.getfixturevalue("shared_data") if "cifar10" in request.getfixturevalue("name") else None


@pytest.mark.parametrize("name", names())
def test_a_file_is_the_one_of_its_card(name):
    card, content = card_of(f"zoo/{name}"), file_of(f"zoo/{name}").read_bytes()
    assert hashlib.sha256(content).hexdigest() == card["sha256"] and len(content) == card["bytes"]
    assert str(card["seed"]) in card["test_accuracy"] and card["command"].split()[-1] == name == card["name"]
    made = network_of(f"zoo/{name}")
    assert 4 * sum(p.numel() for p in made.parameters()) < card["float_bytes"]
    assert card["commit"] and not card["commit"].endswith("-dirty")


def test_the_zoo_is_small():
    assert sum(path.stat().st_size for path in ZOO_FOLDER.iterdir() if path.suffix != ".py") < MOST
    assert {path.stem for path in ZOO_FOLDER.glob("*.packed")} == set(names())


def test_the_smallest_is_as_accurate_as_its_card_says():
    (row,) = evaluate_source("zoo/resnet8-digits-w2a2")
    assert row["accuracy"] == pytest.approx(card_of("resnet8-digits-w2a2")["test_accuracy"]["0"], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_each_is_as_accurate_as_its_card_says(name, root):
    (row,) = evaluate_source(f"zoo/{name}", root=root)
    card = card_of(name)
    # other processors add in another order: single images at a tie
    assert row["accuracy"] == pytest.approx(card["test_accuracy"][str(card["seed"])], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if card_of(name)["accuracy_at"]])
def test_one_file_is_as_accurate_at_each_width(name, root):
    expected = card_of(name)["accuracy_at"]
    rows = evaluate_source(f"zoo/{name}", root=root, act_bits=[int(bits) for bits in expected])
    for row in rows:
        assert row["accuracy"] == pytest.approx(expected[str(row["act_bits"])], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMATS if form != "packed"])
@pytest.mark.parametrize("name", names())
def test_each_is_exported_to_every_format(name, form, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = export_source(f"zoo/{name}", form, root=root, images=500)
    assert report.exported.path.name == name + format_named(form).suffix and report.images <= 500


def test_it_is_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = spequant.load("zoo/resnet8-digits-w2a2")
    assert net.classes == tuple("0123456789") and net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    other = spequant.load("zoo/resnet8-digits-w2a2", network_of("zoo/resnet8-digits-w2a2"))
    assert torch.equal(net(torch.ones(1, 1, 8, 8)), other(torch.ones(1, 1, 8, 8)))


def test_a_file_of_that_path_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert of_zoo("zoo/net") and not of_zoo("other/net")
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "net").touch()
    assert not of_zoo("zoo/net") and file_of("zoo/net") == (tmp_path / "zoo/net").relative_to(tmp_path)


@pytest.mark.parametrize("path", ["zoo/resnet8-digits-w2a3", "zoo/../x"])
def test_an_unknown_name_is_refused(path):
    with pytest.raises(ValueError, match="resnet8-digits-w2a2"):
        spequant.load(path)


def test_cards_are_json_of_one_form():
    keys = [list(json.loads(path.read_text())) for path in ZOO_FOLDER.glob("*.json")]
    assert all(entry == keys[0] for entry in keys)


def row(card) -> str:
    """Of the table in docs/zoo.md."""
    accuracies = ", ".join(f"{value:.2f}" for value in card["test_accuracy"].values())
    epochs = f"{card['epochs']['low-bit']} after {card['epochs']['float'] or 'published weights'}"
    several = "".join(f" to A{bits}" for bits in list(card["accuracy_at"])[-1:])
    width = f"W{card['weight_bits']}A{card['act_bits']}{several}"
    return (
        f"| `{card['name']}` | {width} | {accuracies} | {card['float_test_accuracy']:.2f} | {epochs} | "
        f"{card['bytes']:,} | {card['float_bytes']:,} |"
    )


def test_the_docs_have_each_card():
    text = (Path(__file__).parents[3] / "docs" / "zoo.md").read_text().splitlines()
    assert [line for line in text if line.startswith("| `")] == [row(card_of(name)) for name in names()]
    for card in map(card_of, names()):
        if card["accuracy_at"]:
            widths = ", ".join(f"{accuracy:.2f} at A{bits}" for bits, accuracy in card["accuracy_at"].items())
            assert f"- `{card['name']}`, the file: {widths}." in text
