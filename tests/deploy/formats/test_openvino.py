"""OpenVINO's own files, .xml and .bin: sealed together, written together."""

import numpy as np
import pytest

from spequant.deploy import integer_graph, read_openvino, write_openvino
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats.openvino import openvino_placed
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
