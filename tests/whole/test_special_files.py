"""Everything that writes a file where a user says so, on links, pipes, devices and folders: each is written through or
refused by name, nothing else is touched; two at once leave one whole file."""

import math
import warnings
from functools import cache, partial

import numpy as np
import pytest
import torch

import spequant
from spequant.app.studies.layers import draw_layers
from spequant.app.studies.pictures import draw_curves
from spequant.deploy import (
    export_mixed,
    export_onnx,
    integer_graph,
    load_packed,
    quant_graph,
    read_onnx,
    read_openvino,
    write_onnx,
    write_openvino,
)
from spequant.files import write_json
from spequant.train import Looks
from spequant.train.checkpoint import read, write
from spequant.train.state import Snapshot
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered, small
from support.mixed_networks import NEEDS_ONNXSCRIPT
from support.special_files import PLACES, STREAMS, at_once, check_place, nodes

pytestmark = NEEDS_ONNXRUNTIME
IMPORTANT = (
    "nothing",
    "a link to a link",
    "a dangling link",
    "a folder",
    "a pipe",
    "a device",
    "a pipe that nobody reads",
)
"""where each writer is tried; all others are one function's, tried in tests/test_files.py"""


def pack(path):
    spequant.pack(lowered("two bits").model, path)


def integer(path):
    write_onnx(integer_graph(lowered("two bits").program), path)


def verified(path):
    case = lowered("two bits")
    export_onnx(case.model, path, [case.x])


def qonnx(path):
    write_onnx(quant_graph(lowered("two bits").program), path)


def mixed(path):
    case = lowered("four bits")
    export_mixed(case.model, path, [case.x])


def openvino(path):
    pytest.importorskip("openvino")
    write_openvino(integer_graph(lowered("two bits").program), path, {})


@cache
def looks():
    values = {what: np.full((2, 1), 0.5) for what in ("clipped", "levels", "low", "high", "clip", "changed")}
    return Looks(["a", "b"], [2, 2], [2, 2], [4, 4], [0], values, [math.nan])


def layers(path):
    pytest.importorskip("matplotlib")
    draw_layers(looks(), path)


def curves(path):
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no runs: the legend is empty
        draw_curves({}, path)


WRITERS = {
    "pack": (pack, "net.packed"),
    "integer ONNX": (integer, "net.onnx"),
    "QONNX": (qonnx, "net.onnx"),
    "JSON": (partial(write_json, content=[1]), "rows.json"),
}
SLOWER = {
    "export_onnx": (verified, "net.onnx"),
    "layers": (layers, "layers.png"),
    "curves": (curves, "curves.png"),
}
SLOW = {"export_mixed": (mixed, "net.mixed.onnx")}
CASES = [(writer, what) for writer in WRITERS for what in IMPORTANT]
CASES += [(writer, what) for writer in SLOWER for what in ("a dangling link", "a pipe")]
CASES += [pytest.param(writer, what, marks=pytest.mark.slow) for writer in SLOWER for what in IMPORTANT]
CASES += [
    pytest.param(writer, what, marks=[pytest.mark.slow, NEEDS_ONNXSCRIPT]) for writer in SLOW for what in IMPORTANT
]


@pytest.mark.parametrize(("writer", "what"), CASES)
def test_every_writer_writes_through_or_leaves_alone(writer, what, tmp_path):
    write, name = (WRITERS | SLOWER | SLOW)[writer]
    expected = None
    if PLACES[what].refused is None:
        (tmp_path / "plain").mkdir()
        write(tmp_path / "plain" / name)
        expected = (tmp_path / "plain" / name).read_bytes()
    (tmp_path / "special").mkdir()
    check_place(what, write, tmp_path / "special", name, expected)


@pytest.mark.parametrize("what", ["a link to a link", "a dangling link", "a folder", "a pipe", "a device"])
@pytest.mark.parametrize(("name", "one"), [("net.xml", "net.bin"), ("net.bin", "net.xml")])
def test_openvinos_two_files_may_be_links_and_nothing_else(what, name, one, tmp_path):
    def write(path):
        openvino(path.with_name("net.xml"))
        assert read_openvino(path.with_name("net.xml")) == {}
        path.with_name(one).unlink()

    if what not in STREAMS:
        check_place(what, write, tmp_path, name, None)
        return
    path = PLACES[what].make(tmp_path, name)
    before = nodes(tmp_path)
    with pytest.raises(OSError, match=rf"{name} .* pipe or a device"):
        write(path)
    assert nodes(tmp_path) == before


@pytest.mark.parametrize("what", ["a file", "a link to a link", "a pipe", "a device", "a dangling link", "a folder"])
def test_a_checkpoint_is_a_folder_of_its_own(what, tmp_path):
    snapshot = Snapshot({"x": torch.arange(3)}, {"step": 7})
    path = PLACES[what].make(tmp_path, "step-00000007")
    before = nodes(tmp_path)
    if what in ("a dangling link", "a folder"):
        write(tmp_path, snapshot, {})
        found, _ = read(path)
        assert torch.equal(found.tensors["x"], torch.arange(3))
        return
    with pytest.raises(OSError, match=r"step-00000007 .* no folder"):
        write(tmp_path, snapshot, {})
    assert nodes(tmp_path) == before


def test_two_exports_to_one_path_at_once_leave_one_whole_file(tmp_path):
    cases = [lowered(name) for name in ("two bits", "four bits")]
    path = tmp_path / "net.packed"
    assert at_once([partial(spequant.pack, case.model, path) for case in cases]) == []
    logits = load_packed(path, small())(cases[0].x)
    assert any(torch.equal(logits, case.model(case.x)) for case in cases)
    path.unlink()
    graphs = [integer_graph(case.program, about={"n": n}) for n, case in enumerate(cases)]
    assert at_once([partial(write_onnx, graph, tmp_path / "net.onnx") for graph in graphs]) == []
    assert read_onnx(tmp_path / "net.onnx")[1]["about"] in ({"n": 0}, {"n": 1})
    (tmp_path / "net.onnx").unlink()
    pytest.importorskip("openvino")
    pair = [partial(write_openvino, graph, tmp_path / "net.xml", {"n": n}) for n, graph in enumerate(graphs)]
    assert at_once(pair) == []
    assert read_openvino(tmp_path / "net.xml") in ({"n": 0}, {"n": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bin", "net.xml"]
