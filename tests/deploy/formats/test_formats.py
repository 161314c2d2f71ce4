"""Formats by name: each is one class and one line, and what is said of all of them is made from the registry."""

import json
import re
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn

from spequant.deploy import FORMATS, Loaded, Twin, export, integer_graph, load, lower, write_onnx
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats import ProgramFormat, check_ending, format_named, format_to_write
from spequant.deploy.formats.onnx import WRITERS
from spequant.deploy.operations import OPERATIONS, Add
from spequant.quantizers import PACT, SAWB
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered, prepared

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = [name for name, form in FORMATS.items() if isinstance(form, ProgramFormat)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_operation_is_written_or_refused(name):
    form = FORMATS[name]
    assert not set(form.writers) & set(form.refused)
    missing = {kind.__name__ for kind in OPERATIONS} - {kind.__name__ for kind in (*form.writers, *form.refused)}
    assert not missing, f"{name} neither writes nor refuses {missing}"


def test_the_documented_table_is_the_registry():
    text = (ROOT / "docs" / "deploy.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^|]*)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|", text, re.M)
    expected = [
        (
            name,
            f"model{form.suffix}",
            form.help,
            form.runs_in,
            "yes" if form.preprocessing else "no",
            "any" if form.any_width else "as exported",
        )
        for name, form in FORMATS.items()
    ]
    assert rows == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_says_what_it_is(name):
    form = FORMATS[name]
    assert form.name == name and form.help and form.runs_in and set(form.engines) <= set(ENGINES)
    assert form.suffix.endswith(form.extension or form.suffix)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("net.packed", "packed"),
        ("net.onnx", "onnx"),
        ("NET.ONNX", "onnx"),
        ("net.mixed.onnx", "mixed"),
        ("net.qonnx.onnx", "qonnx"),
        ("a.mixed.onnx/net.onnx", "onnx"),
        ("net.xml", "openvino"),
        ("net.tflite", "tflite"),
        ("net.int4.tflite", "tflite4"),
        ("net.c", "c"),
    ],
)
def test_the_ending_says_the_format(path, name):
    assert format_to_write(Path(path), None).name == name


@pytest.mark.parametrize("path", ["net", "net.tar", "onnx", "net.packed.gz"])
def test_an_ending_of_no_format_is_an_error_that_lists_them(path):
    with pytest.raises(ValueError, match=rf"path is '{path}'.*\.packed \(packed\), .*\.tflite \(tflite\)"):
        format_to_write(Path(path), None)


def test_an_ending_of_two_formats_is_one_too(monkeypatch):
    class Other(type(FORMATS["onnx"])):
        name = "other"

    monkeypatch.setitem(FORMATS, "other", Other())
    with pytest.raises(ValueError, match=r"net\.onnx', .*onnx or other"):
        format_to_write(Path("net.onnx"), None)
    assert format_to_write(Path("net.onnx"), "other").name == "other"


@pytest.mark.parametrize(
    ("name", "path"), [("onnx", "net.bin"), ("openvino", "net.onnx"), ("packed", "net.onnx"), ("packed", "net.xml")]
)
def test_a_file_has_an_ending_by_which_it_is_known_again(name, path):
    with pytest.raises(ValueError, match=rf"out is '{path}'; .*--to {name}"):
        check_ending(format_named(name), Path(path), "out")


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match=r"format is 'coreml'; .*packed, .*tflite"):
        format_named("coreml")


class Listing(ProgramFormat):
    """A new format: the operations, one per line, and an engine that only knows the network's answers."""

    name, suffix, extension = "listing", ".ops", ".ops"
    help = "operations by name"
    runs_in = "nothing"
    engines = ("reader",)
    writers = MappingProxyType({kind: writer for kind, writer in WRITERS.items() if kind is not Add})
    refused = (Add,)

    def content(self, program, preprocessing, about):
        return json.dumps([op.name for op in program.ops])

    def write(self, draft, path):
        path.write_text(draft.content)

    def open(self, path, network):
        return Loaded(path, self.name, self.engines, about={"ops": json.loads(path.read_text())})


def test_a_new_format_is_a_class_and_one_line(monkeypatch, tmp_path):
    x = torch.randn(32, 4)
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model = prepared(network, x, SAWB(4), PACT(4))
    twin = Twin(lower(model, x[:1]))
    monkeypatch.setitem(FORMATS, "listing", Listing())

    def right(path, threads=None):
        return lambda feed: [twin(torch.from_numpy(feed["input"])).numpy()]

    def wrong(path, threads=None):
        return lambda feed: [np.zeros((len(feed["input"]), 3), np.float32)]

    monkeypatch.setitem(ENGINES, "reader", right)
    report = export(model, tmp_path / "net.ops", [x])
    assert (report.format, report.parity.agreement, report.parity.images) == ("listing", 1, 32)
    assert load(tmp_path / "net.ops").about["ops"][-1] == "2"
    monkeypatch.setitem(ENGINES, "reader", wrong)
    with pytest.raises(ValueError, match=r"^reader"):
        export(model, tmp_path / "wrong.ops", [x])
    assert [path.name for path in tmp_path.iterdir()] == ["net.ops"]
    case = lowered("two bits")
    with pytest.raises(ValueError, match=r"layer1\.0.*: .*listing has no add"):
        export(case.model, tmp_path / "sum.ops", [case.x])


@NEEDS_ONNXRUNTIME
def test_a_kind_of_onnx_file_that_is_not_known_is_named(tmp_path):
    import onnx

    graph = integer_graph(lowered("two bits").program)
    head = json.loads(graph.metadata_props[0].value)
    onnx.helper.set_model_props(
        graph, {"spequant": json.dumps({**head, "kind": "newer"}), "seal": graph.metadata_props[1].value}
    )
    write_onnx(graph, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=r"net\.onnx is of none.*qonnx"):
        load(tmp_path / "net.onnx")
