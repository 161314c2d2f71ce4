"""OpenVINO's own files, .xml and .bin: sealed together, written together."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import (
    Program,
    Twin,
    align_ranges,
    integer_graph,
    lower,
    quantize_biases,
    read_openvino,
    write_openvino,
)
from spequant.deploy.compare import forced
from spequant.deploy.engines import ENGINES, compile_openvino
from spequant.deploy.formats.onnx import op_graph
from spequant.deploy.formats.openvino import OpenVino, openvino_graph, openvino_placed
from spequant.deploy.grids import Grid, stored
from spequant.deploy.operations import Add, Input, Mean, Quantize, Weighted
from spequant.models.residual import ResidualAdd
from spequant.quantizers import PACT, SAWB
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


class Block(nn.Module):
    """One residual block."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.c = nn.Conv2d(1, 8, 3), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.add, self.last = ResidualAdd(), nn.Linear(8 * 36, 3)

    def forward(self, x):
        y = torch.relu(self.first(x))
        y = torch.relu(self.add(self.b(torch.relu(self.a(y))), y))
        return self.last(torch.flatten(torch.relu(self.c(y)), 1))


@pytest.mark.parametrize("bits", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_an_addition_is_part_of_the_layer_before_it(bits):
    pytest.importorskip("openvino")
    x = torch.randn(16, 1, 8, 8)
    model = spequant.prepare(Block(), weight=SAWB(bits), act=PACT(bits)).eval()
    spequant.calibrate(model, [x], samples=len(x))
    align_ranges(model, x[:1])
    quantize_biases(model, x[:1])
    program = lower(model, x[:1])
    found = forced(program, x, lambda graph: ENGINES["openvino"](graph, 1), OpenVino.graphs)
    assert all(f.unequal == f.ties for f in found.values()) and sum(f.unequal for f in found.values()) <= 2
    values = Twin(program).everything(x)
    sums = [op for op in program.ops if isinstance(op, Add)]
    for taps in (program.integer_ops, sums):  # with a tap on an addend, that is no part of a kernel
        whole = OpenVino.graphs.whole(program, taps=taps)
        _, *codes = ENGINES["openvino"](whole.data, 1)({"input": x.numpy()})
        assert sum((got != stored(values[op], op.grid)).sum() for got, op in zip(codes, taps, strict=True)) <= 2
    graph = openvino_graph(program).SerializeToString()
    (out,) = ENGINES["openvino"](graph, 1)({"input": x.numpy()})
    np.testing.assert_allclose(out, values[program.output], rtol=1e-3, atol=1e-3)
    compiled = ThreadPoolExecutor(1).submit(compile_openvino, graph, 1).result()
    nodes = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    kinds = {n["originalLayersNames"].astype(str): n["layerType"].astype(str) for n in nodes}
    assert [kind for names, kind in kinds.items() if "add/Add" in names] == ["Convolution"]
    assert list(kinds.values()).count("FakeQuantize") == 1  # of the input
    assert list(kinds.values()).count("Eltwise") == (bits == 2)  # few codes of the first layer's


@pytest.mark.parametrize("grid", [Grid(0.0123, -127, 127), Grid(0.0177, 0, 255)])
def test_an_addend_of_any_grid_is_rounded_before_it_is_added(grid):
    """13 % of the codes of a sum were others where that was left out."""
    pytest.importorskip("openvino")
    shape = (1, 8, 8, 8)
    x = Input("x", (), None, shape)
    codes, other = Quantize("codes", (x,), Grid(0.31, 0, 3), shape), Quantize("other", (x,), Grid(0.019, 0, 255), shape)
    weight, scale = torch.randint(-1, 2, (8, 8, 3, 3)).short(), torch.full((8,), 0.13, dtype=torch.float64)
    window = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    layer = Weighted("layer", (codes,), grid, shape, weight, scale, scale * 0, **window)
    total = Add("add", (layer, other), Grid(0.0171, 0, 255), shape)
    program = Program([x, codes, other, layer, total], total)
    images = torch.randint(-512, 512, (8, *shape[1:])) / 64
    (got,) = ENGINES["openvino"](openvino_graph(program).SerializeToString(), 1)({"input": images.numpy()})
    expected = Twin(program)(images)
    assert float((torch.from_numpy(got) - expected).abs().gt(1e-3).float().mean()) < 1e-3


def test_a_mean_of_three_dimensions_has_the_codes_of_a_zero_point():
    """Half of them were others."""
    pytest.importorskip("openvino")
    source = Input("x", (), Grid(0.0067, -127, 127, clamp=(0, 1)), (1, 8, 5))
    op = Mean("mean", (source,), Grid(0.00219, 0, 255), (1, 8))
    codes = torch.randint(0, 128, (16, 8, 5), dtype=torch.int32)
    run = ENGINES["openvino"](op_graph(op).SerializeToString(), 1)
    (got,) = run({"in0": stored(codes, source.grid)})
    assert np.abs(got.astype(int) - np.clip(np.rint(op.compute([codes]).numpy()), 0, 255)).max() <= 1
