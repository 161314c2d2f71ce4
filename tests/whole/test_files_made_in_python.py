"""Capability: files that `pack`, `export` and their kin wrote, with nothing said of a recipe, are first-class for the
commands: each works on them, or says in a sentence what is missing."""

import json

import numpy as np
import pytest
import torch

import spequant
from spequant.app.cli import main
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered

pytestmark = NEEDS_ONNXRUNTIME
NETWORKS = "from support.integer_networks import small\n\nnetwork = small()\nnumber = 3\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """net.packed, net.onnx, images.onnx, a file of networks, an .npz of what the network itself answers."""
    folder = tmp_path_factory.mktemp("made")
    case = lowered("two bits")
    spequant.pack(case.model, folder / "net.packed")
    spequant.export_onnx(case.model, folder / "net.onnx", [case.x], about={"recipe": "of my own", "size": 3})
    spequant.export(case.model, folder / "plain.onnx", [case.x])
    with torch.no_grad():
        labels = case.model(case.x).argmax(1)
    np.savez(folder / "test.npz", inputs=case.x.numpy(), labels=labels.numpy())
    np.savez(folder / "inputs.npz", inputs=case.x.numpy())
    np.savez(folder / "wrong.npz", inputs=case.x.numpy(), labels=labels.numpy() + 5)
    np.savez(folder / "few.npz", inputs=case.x.numpy(), labels=labels.numpy()[:3])
    np.savez(folder / "other.npz", images=case.x.numpy())
    np.savez(folder / "small.npz", inputs=case.x.numpy()[:, :, :4], labels=labels.numpy())
    (folder / "text.npz").write_text("no archive")
    (folder / "networks.py").write_text(NETWORKS)
    return folder


NETWORK = ("--network", "networks.py:small")
DATA = ("--arrays", "test.npz")


def ran(folder, monkeypatch, *args):
    monkeypatch.chdir(folder)
    main([*args, "--json", "rows.json"])
    return json.loads((folder / "rows.json").read_text())


@pytest.mark.parametrize(
    ("args", "engine"),
    [
        (("plain.onnx",), "onnxruntime"),
        (("plain.onnx", "--engines", "torch"), "torch"),
        (("net.onnx",), "onnxruntime"),
        (("net.packed", *NETWORK), "torch"),
        (("net.packed", "--network", "networks.py:network", "--engines", "onnxruntime"), "onnxruntime"),
    ],
)
def test_evaluate(args, engine, folder, monkeypatch):
    (row,) = ran(folder, monkeypatch, "evaluate", *args, *DATA)
    assert (row["accuracy"], row["samples"], row["engine"], row["recipe"]) == (100, 32, engine, args[0])
    assert row["act_bits"] == 2 and row["seed"] is None


@pytest.mark.parametrize(("name", "package"), [("net.mixed.onnx", "onnxscript"), ("net.xml", "openvino")])
def test_formats_that_run_only_as_they_are(name, package, folder, monkeypatch):
    pytest.importorskip(package)
    case = lowered("two bits")
    spequant.export(case.model, folder / name, [case.x])
    (row,) = ran(folder, monkeypatch, "evaluate", name, *DATA)
    assert row["accuracy"] == 100 and row["act_bits"] == 2
    facts = ran(folder, monkeypatch, "inspect", name)
    assert facts["inputs"] == {"input": [None, *case.x.shape[1:]]} and facts["act_bits"] == [2, 8]
    files = {path.name: path.stat().st_size for path in folder.glob(f"{name.removesuffix('.xml')}*")}
    assert facts["bytes"].items() <= files.items() and facts["bytes"][name] > 0
    weights = sum(module.weight.numel() for module in case.model.modules() if hasattr(module, "weight"))
    assert facts["numbers"]["int8"] > 0 and sum(facts["numbers"].values()) > 0.5 * weights
    for args in ("evaluate", name, *DATA, "--act-bits", "4"), ("bench", "infer", name):
        with pytest.raises(SystemExit, match=f"{name} is .*--to {spequant.load(folder / name).format}"):
            main([*args])


@pytest.mark.parametrize("kind", ["uint8", "float64", "bool"])
def test_numbers_of_other_types_become_floats(kind, folder, tmp_path, monkeypatch):
    inputs = (np.load(folder / "test.npz")["inputs"] > 0).astype(kind)
    with torch.no_grad():
        labels = lowered("two bits").model(torch.from_numpy(inputs).float()).argmax(1)
    np.savez(tmp_path / "other.npz", inputs=inputs, labels=labels.numpy())
    for source in ("net.packed", *NETWORK), ("plain.onnx", "--engines", "torch"):
        (row,) = ran(folder, monkeypatch, "evaluate", *source, "--arrays", str(tmp_path / "other.npz"))
        assert row["accuracy"] > 90  # ties apart
    data = "--arrays", str(tmp_path / "other.npz")
    main(["inspect", "net.packed", *NETWORK, *data])
    main(["export", "net.packed", "--to", "onnx", "--round-biases", *NETWORK, *data, "--out", str(tmp_path / "n.onnx")])


def test_images_that_the_file_normalises_itself(folder, tmp_path, monkeypatch):
    case = lowered("two bits")
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    spequant.export(case.model, folder / "images.onnx", [images], preprocessing=((0.5,), (0.25,)))
    with torch.no_grad():
        labels = case.model((images.float() / 255 - 0.5) / 0.25).argmax(1)
    np.savez(tmp_path / "images.npz", inputs=images.numpy(), labels=labels.numpy())
    for engine in ("onnxruntime", "torch"):
        data = "--arrays", str(tmp_path / "images.npz"), "--engines", engine
        (row,) = ran(folder, monkeypatch, "evaluate", "images.onnx", *data)
        assert row["accuracy"] == 100, engine
    (row,) = ran(
        folder, monkeypatch, "evaluate", "images.onnx", "--arrays", str(tmp_path / "images.npz"), "--act-bits", "3"
    )
    assert row["act_bits"] == 3
    with pytest.raises(SystemExit, match=r"input is torch\.float32; images\.onnx .*torch\.uint8"):
        main(["evaluate", "images.onnx", *DATA])


def test_evaluate_at_other_widths(folder, monkeypatch):
    for source in (("plain.onnx",), ("net.packed", *NETWORK)):
        rows = ran(folder, monkeypatch, "evaluate", *source, *DATA, "--act-bits", "1", "4", "--images", "20")
        assert [(row["act_bits"], row["samples"]) for row in rows] == [(1, 20), (4, 20)]


def test_inspect(folder, monkeypatch, capsys):
    of_graph = ran(folder, monkeypatch, "inspect", "plain.onnx")
    bare = ran(folder, monkeypatch, "inspect", "net.packed")
    assert "operations need the network" in capsys.readouterr().out
    full = ran(folder, monkeypatch, "inspect", "net.packed", *NETWORK, *DATA)
    assert of_graph["total"]["macs"] >= full["total"]["macs"] > 0 and bare["total"]["macs"] is None
    layers = {layer["name"]: layer for layer in full["layers"]}
    assert len(bare["layers"]) == len(layers) == 8
    for layer in bare["layers"]:
        known = layers[layer["name"]]
        for what in ("weight_bits", "act_bits", "weights", "weight_range", "act_range"):
            assert layer[what] == pytest.approx(known[what]), what
        assert layer["macs"] is layer["bit_operations"] is None


@pytest.mark.parametrize("to", ["onnx", "packed", "openvino"])
def test_export(to, folder, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.chdir(folder)
    out = tmp_path / {"onnx": "net.onnx", "packed": "net.packed", "openvino": "net.xml"}[to]
    main(["export", "net.packed", "--to", to, *NETWORK, "--arrays", "inputs.npz", "--out", str(out)])
    case = lowered("two bits")
    loaded = spequant.load(out)
    assert loaded.about == {} and loaded.act_bits == (2, 8)
    if to != "packed":
        assert (loaded(case.x).argmax(1) == case.model(case.x).argmax(1)).all()


@pytest.mark.slow
def test_bench_infer(folder, monkeypatch):
    pytest.importorskip("onnxscript")
    for source in ("plain.onnx", *NETWORK), ("net.packed", *NETWORK, "--arrays", "inputs.npz"):
        rows = ran(folder, monkeypatch, "bench", "infer", *source, "--rounds", "1", "--engines", "onnxruntime")
        assert [row["name"] for row in rows] == ["fp32", "static int8", "A2"] and all(row["ms"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("evaluate plain.onnx", r"plain\.onnx .*tested on, .*--arrays"),
        ("evaluate net.packed --arrays test.npz", r"net\.packed .*what network it holds, .*--network"),
        ("evaluate net.packed --network networks.py:small", r"net\.packed .*--arrays FILE\.npz"),
        ("evaluate net.onnx", r"net\.onnx .*what network it holds .*--network"),
        ("evaluate plain.onnx --arrays inputs.npz", r"no labels; .*labels"),
        ("evaluate plain.onnx --arrays wrong.npz", "labels run from .* 0 to 9"),
        ("evaluate plain.onnx --arrays few.npz", r"few\.npz: labels .*\(32,\)"),
        ("evaluate plain.onnx --arrays other.npz", r"other\.npz holds .*images; .*inputs and labels"),
        ("evaluate plain.onnx --arrays text.npz", r"text\.npz is no \.npz"),
        ("evaluate plain.onnx --arrays nowhere.npz", r"nowhere\.npz does not exist"),
        ("evaluate plain.onnx --arrays small.npz", r"input has the shape \(32, 1, 4, 8\); .*plain\.onnx"),
        ("evaluate net.packed --arrays test.npz --network networks.py:number", "number'.*called without arguments"),
        ("evaluate net.packed --arrays test.npz --network collections:OrderedDict", "gives OrderedDict; .*Module"),
        ("evaluate net.packed --arrays test.npz --network networks.py:other", r"networks\.py has no 'other'"),
        ("evaluate net.packed --arrays test.npz --network torch.nn:Identity", "file of another network"),
        ("export net.packed --to onnx --arrays test.npz", r"net\.packed .*to export it, give --network"),
        ("export net.packed --to onnx --network networks.py:small", r"net\.packed .*--arrays FILE\.npz"),
        (
            "export net.packed --to onnx --network networks.py:small --arrays test.npz --preprocessing",
            "preprocessing .*arrays hold",
        ),
        ("export plain.onnx --to packed", r"plain\.onnx is .*--to onnx; .*a packed file"),
        ("inspect net.packed --network networks.py:small", r"net\.packed .*--arrays FILE\.npz"),
        ("bench infer plain.onnx", r"plain\.onnx .*--network"),
        ("bench infer net.packed", r"net\.packed .*to time it, give --network"),
        ("bench infer net.packed --network networks.py:small", r"net\.packed .*--arrays FILE\.npz"),
    ],
)
def test_what_is_missing_is_named(args, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match=message):
        main(args.split())
