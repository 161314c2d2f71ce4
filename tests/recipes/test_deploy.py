"""From a run to files and engines by command: export, evaluate, inspect, bench infer; and what they refuse."""

import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import spequant
from spequant import models
from spequant.cli import main
from spequant.data import Augment, eval_batches, load_cifar10, train_batches
from spequant.export import compare, integer_graph, lower, pack, quantize_biases, read_onnx
from spequant.export.engines import ENGINES
from spequant.export.onnx_export import as_batches
from spequant.export.parity import forced
from spequant.quantizers import PACT, SAWB
from spequant.recipes import evaluate_source, export_source, open_source
from spequant.recipes.sources import about_run
from support.processor import END_BITS, clipped, clips

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained W2A2 network on the digits."""
    folder = tmp_path_factory.mktemp("runs")
    short = ["--train.epochs", "2", "--data.held-out", "0", "--train.no-compile", *END_BITS]
    main(["train", "digits-float", *short, "--out", str(folder / "float")])
    main(
        ["train", "digits-w2a2-speq", *short, "--network.weights", str(folder / "float"), "--out", str(folder / "low")]
    )
    return folder / "low"


@pytest.fixture(scope="module")
def packed(run) -> Path:
    main(["export", str(run), "--to", "packed"])
    return run / "model.packed"


@pytest.fixture(scope="module")
def integer(run) -> Path:
    main(["export", str(run), "--to", "onnx"])
    return run / "model.onnx"


def accuracy(path, **how) -> float:
    (row,) = evaluate_source(path, **how)
    return row["accuracy"]


def test_biases_of_a_run_are_integers(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["integer"] for row in rows if row["kind"] == "biases"] == [True]


def test_every_file_answers_as_the_run(run, packed, integer, capsys):
    expected = json.loads((run / "result.json").read_text())["test_accuracy"]
    assert accuracy(run) == accuracy(packed) == expected
    capsys.readouterr()
    main(["export", str(packed), "--to", "packed", "--out", str(run / "again.packed")])
    assert "the logits of 500 images are equal, bit for bit" in capsys.readouterr().out
    assert (run / "again.packed").read_bytes() == packed.read_bytes()
    for engine in ("torch", "onnxruntime"):
        assert accuracy(integer, engine=engine) == pytest.approx(expected, abs=0.67)  # three of 500 images
        assert accuracy(packed, engine=engine) == pytest.approx(expected, abs=0.67)
    assert stat.S_IMODE(packed.stat().st_mode) == stat.S_IMODE((run / "result.json").stat().st_mode)


@pytest.mark.parametrize(
    ("to", "engine", "name"), [("openvino", "openvino", "net.xml"), ("qonnx", "qonnx", "net.onnx")]
)
def test_other_engines_formats(run, packed, to, engine, name, tmp_path, capsys):
    pytest.importorskip(engine)
    expected = json.loads((run / "result.json").read_text())["test_accuracy"]
    main(["export", str(packed), "--to", to, "--out", str(tmp_path / name)])
    printed = capsys.readouterr().out
    assert f"{engine}: arg-max equal on" in printed and "times smaller than in fp32" in printed
    assert accuracy(tmp_path / name) == pytest.approx(expected, abs=0.67)
    if engine == "qonnx":
        assert accuracy(run, engine="qonnx", images=50) == accuracy(tmp_path / name, images=50)
    with pytest.raises(ValueError, match=f"is a file of --to {to} and runs at one activation width"):
        evaluate_source(tmp_path / name, act_bits=[4])
    with pytest.raises(ValueError, match=f"is a file of --to {to} and runs in {engine} alone"):
        evaluate_source(tmp_path / name, engine="torch")
    with pytest.raises(ValueError, match=f"is a file of --to {to}; expected a run's folder or a packed file"):
        export_source(tmp_path / name, "packed")


def test_any_activation_width_from_one_file(run, packed, integer, tmp_path, capsys):
    widths = (1, 2, 3, 4, 8)
    rows = {path: evaluate_source(path, act_bits=widths) for path in (run, packed, integer)}
    assert [row["act_bits"] for row in rows[packed]] == list(widths)
    assert [r["accuracy"] for r in rows[run]] == [r["accuracy"] for r in rows[packed]]
    assert len({row["accuracy"] for row in rows[packed]}) > 2
    for ours, theirs in list(zip(rows[packed], rows[integer], strict=True))[1:]:
        assert theirs["accuracy"] == pytest.approx(ours["accuracy"], abs=1.0)
    capsys.readouterr()
    main(["evaluate", str(packed), "--act-bits", "3", "4", "--json", str(tmp_path / "rows.json")])
    assert re.findall(r"A\d+", capsys.readouterr().out) == ["A3", "A4"]
    assert [row["act_bits"] for row in json.loads((tmp_path / "rows.json").read_text())] == [3, 4]
    main(["export", str(packed), "--to", "onnx", "--act-bits", "4", "--out", str(tmp_path / "four.onnx")])
    (row,) = evaluate_source(tmp_path / "four.onnx")
    assert row["act_bits"] == 4 and row["accuracy"] == pytest.approx(rows[integer][3]["accuracy"], abs=1.0)
    (row,) = evaluate_source(tmp_path / "four.onnx", act_bits=[2])  # and back: the file knows its trained width
    assert row["accuracy"] == pytest.approx(rows[integer][1]["accuracy"], abs=1.0)
    with pytest.raises(ValueError, match="bits is 9; expected a whole number of bits from 1 to 8"):
        evaluate_source(packed, act_bits=[9])


def test_images_go_in_as_they_are(packed, tmp_path):
    pytest.importorskip("openvino")
    main(["export", str(packed), "--to", "onnx", "--preprocessing", "--out", str(tmp_path / "net.onnx")])
    graph, head = read_onnx(tmp_path / "net.onnx")
    assert graph.graph.input[0].type.tensor_type.elem_type == 2 and head["preprocessing"] is not None  # uint8
    assert accuracy(tmp_path / "net.onnx") == pytest.approx(accuracy(packed), abs=0.67)
    assert accuracy(tmp_path / "net.onnx", engine="openvino") == pytest.approx(accuracy(packed), abs=0.67)
    assert accuracy(tmp_path / "net.onnx", engine="torch") == pytest.approx(accuracy(packed), abs=0.67)
    main(["export", str(packed), "--to", "openvino", "--preprocessing", "--out", str(tmp_path / "net.xml")])
    assert accuracy(tmp_path / "net.xml") == pytest.approx(accuracy(packed), abs=0.67)
    with pytest.raises(ValueError, match="preprocessing goes into graphs of --to onnx, mixed and openvino, not qonnx"):
        export_source(packed, "qonnx", tmp_path / "x.onnx", preprocessing=True)


def test_inspect(run, packed, integer, tmp_path, capsys):
    totals = []
    for source in (run, packed, integer):
        main(["inspect", str(source), "--json", str(tmp_path / "costs.json")])
        printed, costs = capsys.readouterr().out, json.loads((tmp_path / "costs.json").read_text())
        assert "layer1.0.conv1" in printed and "times the bit operations" in printed
        assert sum(layer["macs"] for layer in costs["layers"]) == costs["total"]["macs"]
        totals.append(costs["total"])
    assert totals[0] == totals[1] and totals[0]["times_smaller_than_fp32"] > 10
    assert 3 < totals[2]["times_smaller_than_fp32"] < 4  # an integer graph holds a byte a weight


def test_bench_infer(packed, integer, tmp_path, capsys):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    path = tmp_path / "rows.json"
    main(["bench", "infer", str(packed), "--rounds", "2", "--bits", "2", "4", "--json", str(path)])
    rows = json.loads(path.read_text())
    assert [(r["engine"], r["name"]) for r in rows] == [
        (engine, name) for engine in ("onnxruntime", "openvino") for name in ("fp32", "W2A2", "W2A4")
    ]
    assert all(r["ms"] > 0 and r["threads"] == 1 and r["batch"] == 1 and r["version"] for r in rows)
    assert rows[0]["times_faster_than_fp32"] == 1
    assert "instruction sets: " in capsys.readouterr().out
    main(["bench", "infer", str(integer), "--rounds", "1", "--engines", "onnxruntime", "--json", str(path)])
    assert [r["name"] for r in json.loads(path.read_text())] == ["fp32", "A2"]
    main(["bench", "infer", str(packed), "--rounds", "1", "--engines", "onnxruntime", "--json", str(path)])
    assert [r["name"] for r in json.loads(path.read_text())] == ["fp32", "W2A2"]
    main(["bench", "--help"])
    assert "usage: spequant bench train|infer" in capsys.readouterr().out


def test_a_damaged_or_hostile_file_says_so(packed, integer, tmp_path):
    source = open_source(packed)
    facts = about_run(source.recipe, source.test_set(), source.model)
    path = tmp_path / "net.packed"
    for change, message in (
        ({"classes": 2**40}, "does not say what network it holds"),
        ({"classes": 60_000}, "expected"),
        ({"shape": [2**15, 8, 8]}, "expected"),
        ({"shape": "big"}, "does not say what network it holds"),
        ({"recipe": {**facts["recipe"], "network": {"name": "os.system"}}}, "does not say what network it holds"),
        ({"recipe": {**facts["recipe"], "network": {"name": "resnet56"}}}, "is the file of another network"),
    ):
        pack(source.model, path, {**facts, **change})
        with pytest.raises(ValueError, match=message):
            open_source(path)
    pack(source.model, path)
    with pytest.raises(ValueError, match="files made in Python are read with spequant"):
        open_source(path)
    data = bytearray(integer.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.onnx").write_bytes(data)
    with pytest.raises(SystemExit, match="was changed since its export, or is damaged"):
        main(["evaluate", str(tmp_path / "flipped.onnx")])
    with pytest.raises(SystemExit, match="does not exist; expected a run's folder or a file"):
        main(["inspect", str(tmp_path / "nowhere.packed")])


def test_weights_of_openvino_do_not_take_the_place_of_what_they_are_made_of(packed, tmp_path):
    source = tmp_path / "net.bin"
    shutil.copy(packed, source)
    before = source.read_bytes()
    with pytest.raises(SystemExit, match=r"net\.xml', whose weights would take the place of .*net\.bin; give another"):
        main(["export", str(source), "--to", "openvino"])
    assert source.read_bytes() == before


def test_a_run_of_another_device_is_read_on_the_cpu(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["train"]["device"] = "cuda:7"
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    assert accuracy(tmp_path / "run") == accuracy(run)


def test_a_header_that_is_nested_too_deeply_is_a_damaged_file(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "net.packed", {"spequant": "[" * 200_000})
    with pytest.raises(ValueError, match="is no packed file, or a damaged one"):
        spequant.load_packed(tmp_path / "net.packed", models.resnet8())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", "{packed}", "--engine", "tflite"], "engine is 'tflite'; expected torch, onnxruntime, openvino"),
        (["evaluate", "{packed}", "--images", "0"], "images is 0; expected 1 or more"),
        (["export", "{packed}", "--to", "packed", "--act-bits", "4"], "a packed file runs at every width"),
        (["export", "{integer}", "--to", "openvino"], "is a file of --to onnx; expected a run's folder"),
        (["export", "{packed}", "--to", "openvino", "--out", "{packed}.bin"], "expected one that ends in .xml"),
        (["bench"], "bench measures ''; expected train or infer"),
        (["bench", "infer", "--network", "resnet19"], "network is 'resnet19'; expected one of resnet8, resnet20"),
        (["bench", "infer", "--network", "load_weights"], "network is 'load_weights'; expected one of"),
        (["bench", "infer", "--network", "vgg16_bn", "--image", "8"], "image is 8: vgg16_bn does not run on it"),
        (["evaluate", "{packed}", "--threads", "0"], "threads is 0; expected 1 or more"),
        (["export", "{packed}", "--to", "onnx", "--out", "net.bin"], "for --to onnx expected one that ends in .onnx"),
        (["export", "{packed}", "--to", "packed", "--out", "net.onnx"], "expected any ending but .onnx and .xml"),
        (["export", "{packed}", "--to", "onnx", "--out", "nowhere/net.onnx"], "the folder nowhere does not exist"),
        (["evaluate", "{packed}", "--json", "nowhere/a.json"], "the folder nowhere does not exist; make it first"),
        (["export", "{run}", "--to", "packed", "--out", "{run}/model.safetensors"], "a file of the run itself"),
        (["export", "{run}/../float", "--to", "packed"], "is a float run, of digits-float; expected a low-bit one"),
        (["bench", "infer", "--rounds", "0"], "rounds is 0; expected 1 or more"),
    ],
)
def test_bad_arguments_are_named(run, packed, integer, args, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        main([a.format(run=run, packed=packed, integer=integer) for a in args])


def test_an_engine_that_answers_otherwise_fails_loudly(packed, tmp_path, monkeypatch, capsys):
    """A wrong engine: the comparison is printed, the command fails, no file is left."""
    from spequant.export import engines

    honest = engines.onnxruntime
    monkeypatch.setattr(engines, "onnxruntime", lambda model, threads=None: lambda feed: shifted(honest(model)(feed)))

    def shifted(outputs):
        return [np.roll(y, 1, 1) if y.dtype == np.float32 and y.shape[1:] == (10,) else y for y in outputs]

    with pytest.raises(SystemExit, match="onnxruntime gives another arg-max than the network on"):
        main(["export", str(packed), "--to", "onnx", "--out", str(tmp_path / "net.onnx")])
    assert "onnxruntime: arg-max equal on" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.skipif(bool(END_BITS), reason="this processor clips sums; 7-bit ends cost too much here")
def test_biases_as_trained_can_be_rounded(packed, tmp_path):
    source = open_source(packed)
    facts = about_run(source.recipe, source.test_set(), source.model)
    torch.manual_seed(1)
    for module in source.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data += 0.05 * torch.randn_like(module.bias)
    pack(source.model, tmp_path / "rough.packed", facts)

    def unequal(round_biases):
        report = export_source(tmp_path / "rough.packed", "onnx", round_biases=round_biases)
        return sum(c.torch or 0 for c in report.parity.codes)

    assert 10 * unequal(True) < unequal(False)
    export_source(tmp_path / "rough.packed", "packed", tmp_path / "smooth.packed", round_biases=True)
    report = export_source(tmp_path / "smooth.packed", "onnx")
    assert report.parity is not None and sum(c.torch or 0 for c in report.parity.codes) == unequal(True)


def test_the_example_runs_without_spequant(packed, tmp_path):
    main(["export", str(packed), "--to", "onnx", "--preprocessing", "--out", str(tmp_path / "net.onnx")])
    test = open_source(packed).test_set()
    np.save(tmp_path / "images.npy", test.images[:50].numpy())
    program = (
        "import runpy, sys; sys.modules['spequant'] = sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1))"
    )
    command = [sys.executable, "-c", program, str(ROOT / "examples" / "onnxruntime_run.py"), "net.onnx", "images.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    logits = open_source(packed).model(test.normalise(test.images[:50]))
    assert [int(c) for c in done.stdout.split()] == logits.argmax(1).tolist()


def test_resnet18_is_packed_to_less_than_a_thirteenth_and_answers_alike(tmp_path):
    """`bench infer`'s network: at most 1 / 13.5 of its fp32 file; onnxruntime gives the twin's codes."""
    pytest.importorskip("torchvision")
    network = models.resnet18()
    save_file(network.state_dict(), tmp_path / "float.safetensors")
    model = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
    x = torch.randn(4, 3, 64, 64)
    spequant.calibrate(model, [x], samples=4)
    pack(model, tmp_path / "net.packed")
    ratio = (tmp_path / "float.safetensors").stat().st_size / (tmp_path / "net.packed").stat().st_size
    assert ratio >= 13.5
    program = lower(model.eval(), x[:1])
    found, left_out = forced(program, x, ENGINES["onnxruntime"]), clipped(program)
    assert not any(f.unequal for op, f in found.items() if op.name not in left_out)
    assert program.islands() == ["relu_16: clamp", "avgpool: mean"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_whole_test_set_in_an_engine(engine, shared_data):
    """Calibrated, not trained (of trained networks: docs/deploy.md): arg-max, accuracy, and forced codes."""
    pytest.importorskip(engine)
    train, test = load_cifar10(shared_data)
    network = models.resnet20()
    models.load_weights(network, shared_data / "weights" / "resnet20-12fca82f.th")
    ends = 7 if clips() else 8  # where 8-bit sums are clipped, 7 bits are what an export is trained with
    model = spequant.prepare(network, weight=SAWB(2), act=PACT(2), ends=ends)
    spequant.calibrate(model, train_batches(train, 128, seed=0, epoch=0, augment=Augment()))
    x = test.normalise(test.images[:1])
    quantize_biases(model, x)
    program, start = lower(model, x), ENGINES[engine]
    batches = as_batches((inputs, labels) for inputs, labels in eval_batches(test, 500))
    parity = compare(model, program, start(integer_graph(program).SerializeToString()), batches, start)
    parity.check(engine)
    assert parity.images == 10_000 and parity.agreement >= 0.995
    assert abs(parity.accuracy[0] - parity.accuracy[1]) <= 0.1


def test_without_the_extra_the_error_names_it():
    program = """
import sys, torch
import spequant
from spequant import export
from spequant.bench.infer import float_onnx
from spequant.export import engines
from spequant.models import resnet8
from spequant.quantizers import PACT, SAWB

x = torch.randn(8, 1, 8, 8)
network = resnet8(in_channels=1)
model = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
spequant.calibrate(model, [x], samples=8)
program = export.lower(model, x[:1])
for package, call in (
    ("onnx", lambda: export.integer_graph(program)),
    ("onnx", lambda: export.quant_graph(program)),
    ("onnxruntime", lambda: engines.onnxruntime(b"")),
    ("openvino", lambda: engines.openvino(b"")),
    ("qonnx", lambda: engines.qonnx(b"")),
    ("onnxscript", lambda: float_onnx(network, x)),
):
    sys.modules[package] = None
    try:
        call()
    except ModuleNotFoundError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("is not installed: pip install 'spequant[deploy]'") == 6
