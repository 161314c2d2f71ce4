"""A run or a packed file exported: in every format it answers as the run did, or no file is left."""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import spequant
from spequant.app.cli import main
from spequant.app.runs import evaluate_source, export_source, open_source
from spequant.app.runs.sources import about_run
from spequant.deploy import pack, read_onnx
from spequant.preparation.placement import unprepare
from spequant.quantizers import LSQ
from support.clipping import clips
from support.exported_run import accuracy, exported
from support.image_folders import fill
from support.integer_networks import NEEDS_ONNXRUNTIME
from support.reporters import Said
from support.special_files import PLACES, STREAMS, nodes

pytestmark = NEEDS_ONNXRUNTIME
ROOT = Path(__file__).resolve().parents[3]
NEAR = 0.67  # three of 500 images


@pytest.fixture(scope="module")
def packed(digits_run) -> Path:
    return exported(digits_run, "packed")


@pytest.fixture(scope="module")
def integer(digits_run) -> Path:
    return exported(digits_run, "onnx")


@pytest.fixture(scope="module")
def expected(digits_run) -> float:
    return json.loads((digits_run / "result.json").read_text())["test_accuracy"]


def test_every_file_answers_as_the_run(digits_run, packed, integer, expected, tmp_path):
    assert accuracy(digits_run) == accuracy(packed) == expected
    report = export_source(packed, "packed", tmp_path / "again.packed", reporter=(said := Said()))
    assert said.phases == ["loading network and data", "writing packed", "verifying on 500 samples in torch"]
    assert (report.images, report.exported.parity.agreement) == (500, 1)
    assert (tmp_path / "again.packed").read_bytes() == packed.read_bytes()
    for engine in ("torch", "onnxruntime"):
        assert accuracy(integer, engine=engine) == pytest.approx(expected, abs=NEAR)
        assert accuracy(packed, engine=engine) == pytest.approx(expected, abs=NEAR)
    assert stat.S_IMODE(packed.stat().st_mode) == stat.S_IMODE((digits_run / "result.json").stat().st_mode)


@pytest.mark.parametrize(
    ("to", "engine", "name"), [("openvino", "openvino", "net.xml"), ("qonnx", "qonnx", "net.onnx")]
)
def test_other_engines_formats(digits_run, packed, expected, to, engine, name, tmp_path):
    pytest.importorskip(engine)
    shown, path = [], tmp_path / name
    report = export_source(packed, to, path, show=lambda parity, engine: shown.append((parity, engine)))
    parity = report.exported.parity
    assert shown == [(parity, engine)] and parity.agreement > 0.99
    assert accuracy(path) == pytest.approx(expected, abs=NEAR)
    if engine == "qonnx":
        assert accuracy(digits_run, engine="qonnx", images=50) == accuracy(path, images=50)
    with pytest.raises(ValueError, match=f"--to {to} .* one activation width"):
        evaluate_source(path, act_bits=[4])
    with pytest.raises(ValueError, match=f"--to {to} .* only in {engine}"):
        evaluate_source(path, engine="torch")
    with pytest.raises(ValueError, match=f"{name} is .* --to {to}; .* packed file"):
        export_source(path, "packed")


def test_images_go_in_as_they_are(packed, expected, tmp_path):
    path = tmp_path / "net.onnx"
    export_source(packed, "onnx", path, preprocessing=True)
    graph, head = read_onnx(path)
    assert graph.graph.input[0].type.tensor_type.elem_type == 2 and head["preprocessing"] is not None  # uint8
    for engine in (None, "openvino", "torch"):
        if engine == "openvino":
            pytest.importorskip(engine)
        assert accuracy(path, engine=engine) == pytest.approx(expected, abs=NEAR)
    with pytest.raises(ValueError, match=r"preprocessing .* not qonnx"):
        export_source(packed, "qonnx", tmp_path / "x.onnx", preprocessing=True)


@pytest.mark.parametrize(
    "to", ["packed", "onnx", *(pytest.param(to, marks=pytest.mark.slow) for to in ("mixed", "qonnx", "openvino"))]
)
def test_a_network_that_answers_at_random_is_exported_in_no_format(packed, to, tmp_path, monkeypatch):
    def noisy(path, *how, **named):
        source = open_source(path, *how, **named)
        plain = type(source.model)
        source.model.__class__ = type("Noisy", (plain,), {"forward": lambda m, x: F.dropout(plain.forward(m, x))})
        return source

    monkeypatch.setattr("spequant.app.runs.exporting.open_source", noisy)
    with pytest.raises(ValueError, match=r"^Noisy \(bernoulli\): .*training=self\.training"):
        export_source(packed, to, tmp_path / f"net{'.xml' if to == 'openvino' else '.onnx' if to != 'packed' else ''}")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_images_go_into_openvinos_file_as_they_are(packed, expected, tmp_path):
    pytest.importorskip("openvino")
    export_source(packed, "openvino", tmp_path / "net.xml", preprocessing=True)
    assert accuracy(tmp_path / "net.xml") == pytest.approx(expected, abs=NEAR)


def test_weights_of_openvino_do_not_take_the_place_of_what_they_are_made_of(packed, tmp_path):
    source = tmp_path / "net.bin"
    shutil.copy(packed, source)
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"net\.xml': .*net\.bin is .*--out"):
        export_source(source, "openvino")
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("to", "name", "target"),
    [
        ("packed", "net.packed", "run/model.safetensors"),
        ("packed", "net.packed", "run/recipe.json"),
        ("onnx", "net.onnx", "source.packed"),
        ("qonnx", "net.onnx", "source.packed"),
        ("openvino", "net.xml", "source.packed"),
        ("openvino", "net.bin", "source.packed"),
    ],
)
def test_no_link_leads_an_export_to_what_it_is_made_of(digits_run, packed, to, name, target, tmp_path):
    shutil.copytree(digits_run, tmp_path / "run")
    shutil.copy(packed, tmp_path / "source.packed")
    (tmp_path / name).symlink_to(target)
    before = nodes(tmp_path)
    source = tmp_path / ("run" if target.startswith("run") else target)
    with pytest.raises(ValueError, match=f"out is .*{target} is .*--out"):
        export_source(source, to, (tmp_path / name).with_suffix(".xml" if to == "openvino" else Path(name).suffix))
    assert nodes(tmp_path) == before


def test_an_export_goes_through_links_and_to_devices(packed, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "net.onnx").symlink_to("other/end")
    report = export_source(packed, "onnx", tmp_path / "net.onnx", images=50)
    assert (tmp_path / "net.onnx").is_symlink() and (tmp_path / "other" / "end").stat().st_size == report.exported.size
    device = PLACES["a device"].make(tmp_path, "null")
    report = export_source(packed, "packed", device, images=50)
    assert report.exported.size == packed.stat().st_size and device.is_char_device()


@pytest.mark.parametrize("what", [what for what in PLACES if PLACES[what].refused and what not in STREAMS])
def test_what_cannot_be_written_is_refused_before_the_work(packed, what, tmp_path, monkeypatch):
    path = PLACES[what].make(tmp_path, "net.xml")
    before = nodes(tmp_path)
    monkeypatch.setattr("spequant.deploy.formats.format.lower", lambda *_: pytest.fail("the work was done"))
    with pytest.raises(OSError, match=PLACES[what].refused):
        export_source(packed, "openvino", path)
    assert nodes(tmp_path) == before


@pytest.mark.slow
def test_biases_as_trained_can_be_rounded(packed, tmp_path):
    if clips():
        pytest.skip("this processor clips sums; 7-bit ends cost too much here")
    source = open_source(packed)
    facts = about_run(source.recipe, source.test_set(), source.model)
    torch.manual_seed(1)
    for module in source.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data += 0.02 * torch.randn_like(module.bias)
    pack(source.model, tmp_path / "rough.packed", facts)

    def unequal(round_biases):
        report = export_source(tmp_path / "rough.packed", "onnx", round_biases=round_biases)
        return sum(c.torch or 0 for c in report.exported.parity.codes)

    rounded = unequal(True)
    assert 10 * rounded < unequal(False)
    export_source(tmp_path / "rough.packed", "packed", tmp_path / "smooth.packed", round_biases=True)
    report = export_source(tmp_path / "smooth.packed", "onnx")
    assert sum(c.torch or 0 for c in report.exported.parity.codes) == rounded


def test_the_example_runs_without_spequant(packed, tmp_path):
    export_source(packed, "onnx", tmp_path / "net.onnx", preprocessing=True)
    source = open_source(packed)
    test = source.test_set()
    np.save(tmp_path / "images.npy", test.images[:50].numpy())
    program = (
        "import runpy, sys; sys.modules['spequant'] = sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1))"
    )
    command = [sys.executable, "-c", program, str(ROOT / "examples" / "onnxruntime_run.py"), "net.onnx", "images.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    logits = source.model(test.normalise(test.images[:50]))
    assert [int(c) for c in done.stdout.split()] == logits.argmax(1).tolist()


def refuse_other_ways(path, root=None):
    with pytest.raises(ValueError, match=r"--to mixed .* only in onnxruntime"):
        evaluate_source(path, engine="torch", root=root)
    with pytest.raises(ValueError, match=r"--to mixed .* one activation width"):
        evaluate_source(path, act_bits=[4], root=root)


@pytest.mark.slow
def test_what_has_no_integer_form_is_exported_mixed(packed, tmp_path, capsys):
    """The network of the run with float weights in one layer, whose activations are quantized."""
    pytest.importorskip("onnxscript")
    source = open_source(packed)
    test = source.test_set()
    kept = {"layer1.0.conv1": (None, LSQ(8))}
    model = spequant.prepare(unprepare(source.model), weight=LSQ(8), act=LSQ(8), overrides=kept)
    spequant.calibrate(model, [test.normalise(test.images[:64])], samples=64)
    path, target = tmp_path / "net.packed", tmp_path / "net.mixed.onnx"
    pack(model, path, about_run(source.recipe, test, model))
    with pytest.raises(SystemExit, match=r"layer1\.0\.conv1: .*`--to mixed`"):
        main(["export", str(path), "--to", "onnx"])
    capsys.readouterr()
    main(["export", str(path), "--to", "mixed", "--preprocessing", "--verbose"])
    printed = capsys.readouterr().out
    assert "in float: " in printed and "conv2d in conv1.layer, layer1.0.conv1.layer" in printed
    (row,) = evaluate_source(target)
    assert row["engine"] == "onnxruntime" and row["accuracy"] == pytest.approx(accuracy(path), abs=NEAR)
    refuse_other_ways(target)


@pytest.mark.slow
def test_a_run_of_a_transformer(tmp_path, capsys):
    fill(tmp_path / "data", train=8, test=8)
    settings = {
        "--network.name": "timm/test_vit",
        "--data.root": str(tmp_path / "data"),
        "--data.size": "32",
        "--train.epochs": "1",
        "--train.batch-size": "8",
        "--quant.product-bits": "8",
        "--quant.act-bits": "8",
        "--method": "retrain",
        "--out": str(tmp_path / "run"),
    }
    words = [word for pair in settings.items() for word in pair]
    main(["train", "transfer-resnet20-w4a4-speq", *words, "--network.no-new-head", "--train.no-compile"])
    with pytest.raises(SystemExit, match="`--to mixed`"):
        main(["export", str(tmp_path / "run"), "--to", "onnx"])
    capsys.readouterr()
    main(["export", str(tmp_path / "run"), "--to", "mixed", "--preprocessing", "--verbose"])
    printed = capsys.readouterr().out
    assert "in float: " in printed and "softmax in blocks.0.attn, blocks.1.attn" in printed
    path = tmp_path / "run" / "model.mixed.onnx"
    expected = json.loads((tmp_path / "run" / "result.json").read_text())["test_accuracy"]
    (row,) = evaluate_source(path, root=tmp_path / "data")
    assert row["engine"] == "onnxruntime" and row["accuracy"] == pytest.approx(expected, abs=2 * 100 / 24)
    refuse_other_ways(path, tmp_path / "data")
