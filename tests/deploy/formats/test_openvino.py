"""OpenVINO's own files, .xml and .bin: sealed together, written together."""

import numpy as np
import pytest
import torch

from spequant.deploy import Program, Twin, integer_graph, read_openvino, write_openvino
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats.openvino import openvino_graph, openvino_placed
from spequant.deploy.grids import Grid, as_float
from spequant.deploy.operations import Add, Input, Quantize, Weighted
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered

pytestmark = NEEDS_ONNXRUNTIME


def test_openvinos_files_are_sealed_together(tmp_path):
    pytest.importorskip("openvino")
    case, path = lowered("two bits"), tmp_path / "net.xml"
    graph = integer_graph(case.program)
    write_openvino(graph, path, {"of": "a test"})
    assert read_openvino(path) == {"of": "a test"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bin", "net.xml"]
    (got,) = ENGINES["openvino"](path, 1)({"input": case.x.numpy()})
    np.testing.assert_allclose(got, case.twin(case.x), rtol=1e-3, atol=1e-3)
    for name in ("net.bin", "net.xml"):
        data = (tmp_path / name).read_bytes()
        changed = bytearray(data)
        changed[len(data) // 2] ^= 4
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(ValueError, match=r"net\.xml was changed"):
            read_openvino(path)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"net\.bin does not exist"):
        read_openvino(path)
    with pytest.raises(ValueError, match=r"net\.onnx.* ends in \.xml"):
        write_openvino(graph, tmp_path / "net.onnx", {})

    with pytest.raises(ValueError, match="other answers"), openvino_placed(graph, tmp_path / "refused.xml", {}) as path:
        assert path.is_file() and path.with_suffix(".bin").is_file()
        raise ValueError("other answers")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.xml"]


def test_an_addend_is_rounded_before_it_is_added():
    """Which OpenVINO leaves out where it computes the addition with the layer before it: 13 % of the codes of `fused`
    were others."""
    pytest.importorskip("openvino")
    shape = (1, 8, 8, 8)
    x = Input("x", (), None, shape)
    codes, other = (
        Quantize("codes", (x,), Grid(0.31, 0, 3), shape),
        Quantize("other", (x,), Grid(0.0177, 0, 255), shape),
    )
    weight, scale = torch.randint(-1, 2, (8, 8, 3, 3)).short(), torch.full((8,), 0.13, dtype=torch.float64)
    window = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    layer = Weighted("layer", (codes,), Grid(0.0123, -127, 127), shape, weight, scale, scale * 0, **window)
    fused = Add("add", (layer, other), Grid(0.0171, 0, 255), shape)
    program = Program([x, codes, other, layer, fused], fused)
    images = torch.randint(-512, 512, (8, *shape[1:])) / 64
    (got,) = ENGINES["openvino"](openvino_graph(program).SerializeToString(), 1)({"input": images.numpy()})
    expected = as_float(Twin(program).everything(images)[fused], fused.grid)
    assert float((torch.from_numpy(got) - expected).abs().gt(1e-3).float().mean()) < 1e-3
