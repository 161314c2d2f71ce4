"""ONNX files: read back to the program that they were made of, refused where changed, foreign or newer."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from spequant.deploy import Twin, integer_graph, load, quant_graph, read_onnx, read_program, write_onnx
from spequant.deploy.seal import SEAL_PREFIX, sealed
from support.integer_networks import NEEDS_ONNXRUNTIME, QUANTIZED, lowered

pytestmark = NEEDS_ONNXRUNTIME
OLD = Path(__file__).parents[1] / "support" / "data" / "format-1"
"""Files of format 1, written by the code of commit 9f50d97, and what they answered."""


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_file_is_read_back_to_the_program_it_was_made_of(name, tmp_path):
    case = lowered(name)
    graph = integer_graph(case.program, about={"of": "a test"})
    write_onnx(graph, tmp_path / "net.onnx")
    again, preprocessing, about = read_program(tmp_path / "net.onnx")
    assert about == {"of": "a test"} and preprocessing is None
    assert integer_graph(again).graph == graph.graph
    assert torch.equal(Twin(again)(case.x), case.twin(case.x))


def test_changed_files_are_refused(tmp_path):
    """Every byte counts: 500 changed files, not one of them is read."""
    write_onnx(integer_graph(lowered("two bits").program), tmp_path / "net.onnx")
    data = (tmp_path / "net.onnx").read_bytes()
    rng, path = random.Random(0), tmp_path / "changed.onnx"
    for i in range(500):
        changed = bytearray(data)
        if i % 5 == 0:
            changed = changed[: rng.randrange(len(data))]
        elif i % 5 == 1:
            where = rng.randrange(len(data))
            changed[where:where] = rng.randbytes(3)
        else:
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"changed\.onnx (was changed|holds no seal)"):
            read_program(path)


def test_files_that_are_not_ours_and_newer_ones_are_refused(tmp_path):
    program, path = lowered("two bits").program, tmp_path / "net.onnx"
    graph = integer_graph(program)
    path.write_bytes(graph.SerializeToString().replace(SEAL_PREFIX.encode(), b"x" * len(SEAL_PREFIX)))
    with pytest.raises(ValueError, match="not written by `spequant export`"):
        read_program(path)
    newer = graph.SerializeToString().replace(b'"format":2', b'"format":3')
    path.write_bytes(sealed(newer))
    with pytest.raises(ValueError, match="format is 3; this version reads 1 and 2"):
        read_program(path)
    path.write_bytes(sealed(graph.SerializeToString().replace(b'"inputs":[0]', b'"inputs":[9]')))
    with pytest.raises(ValueError, match=r"net\.onnx contradicts itself"):
        read_program(path)
    path.write_bytes(sealed(b"no graph " + SEAL_PREFIX.encode() + b"0" * 32))
    with pytest.raises(ValueError, match=r"net\.onnx is no ONNX"):
        read_program(path)
    write_onnx(quant_graph(program), path)
    with pytest.raises(ValueError, match=r"net\.onnx .* qonnx"):
        read_program(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_program(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "about"), [("islands", 1), ("joined", 5)])
def test_files_of_format_1_are_read_to_the_same_program(name, about):
    """Every operation on codes and in float; one of the graphs takes uint8 images."""
    old = np.load(OLD / "expected.npz")
    program, preprocessing, said = read_program(OLD / f"{name}.onnx")
    assert said == {"n": about} and read_onnx(OLD / f"{name}.onnx")[1]["format"] == 1
    x = torch.from_numpy(old[name])
    if preprocessing is not None:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in preprocessing)
        x = (x.float() / 255 - mean) / std
    assert np.array_equal(Twin(program)(x).numpy(), old[f"{name}_out"])
    loaded = load(OLD / f"{name}.onnx")
    np.testing.assert_allclose(loaded(old[name]), old[f"{name}_out"], rtol=1e-3, atol=1e-3)
    assert loaded.act_bits == tuple(program.act_bits) and loaded.shape == (3, 8, 8)


def test_an_old_program_is_written_as_a_new_one(tmp_path):
    program, _, about = read_program(OLD / "islands.onnx")
    write_onnx(integer_graph(program, about=about), tmp_path / "net.onnx")
    assert integer_graph(program).graph == read_onnx(OLD / "islands.onnx")[0].graph
    again = read_program(tmp_path / "net.onnx")[0]
    assert {type(op).__name__ for op in again.ops} >= {"MaxPool", "Concat", "Amax", "Clamp", "Sigmoid", "Mul", "Affine"}
    assert integer_graph(again).graph == integer_graph(program).graph


@pytest.mark.parametrize(
    ("name", "package"),
    [("islands.mixed.onnx", "onnxscript"), ("islands.qonnx.onnx", "qonnx"), ("linear.xml", "openvino")],
)
def test_other_files_of_before_are_run(name, package):
    pytest.importorskip(package)
    loaded, case = load(OLD / name), name.partition(".")[0]
    old = np.load(OLD / ("linear.npz" if case == "linear" else "expected.npz"))
    assert loaded.act_bits == () and loaded.about["n"] in (2, 3, 6)
    np.testing.assert_allclose(loaded(old[case]), old[f"{case}_out"], rtol=1e-3, atol=2e-2)
