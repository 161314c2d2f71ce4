"""ONNX files: read back to the program that they were made of, refused where changed, foreign or newer."""

import random

import pytest
import torch

from spequant.deploy import Twin, integer_graph, quant_graph, read_program, write_onnx
from spequant.deploy.seal import MARK, sealed
from support.integer_networks import NEEDS_ONNXRUNTIME, QUANTIZED, lowered

pytestmark = NEEDS_ONNXRUNTIME


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
    path.write_bytes(graph.SerializeToString().replace(MARK.encode(), b"x" * len(MARK)))
    with pytest.raises(ValueError, match="not written by `spequant export`"):
        read_program(path)
    newer = graph.SerializeToString().replace(b'"format":1', b'"format":2')
    path.write_bytes(sealed(newer))
    with pytest.raises(ValueError, match="format is 2; this version reads 1"):
        read_program(path)
    path.write_bytes(sealed(graph.SerializeToString().replace(b'"inputs":[0]', b'"inputs":[9]')))
    with pytest.raises(ValueError, match=r"net\.onnx contradicts itself"):
        read_program(path)
    path.write_bytes(sealed(b"no graph " + MARK.encode() + b"0" * 32))
    with pytest.raises(ValueError, match=r"net\.onnx is no ONNX"):
        read_program(path)
    write_onnx(quant_graph(program), path)
    with pytest.raises(ValueError, match=r"net\.onnx .* qonnx"):
        read_program(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_program(tmp_path / "nowhere")
