"""--to tflite: the numbers in the file, LiteRT's and TensorFlow Lite Micro's codes and answers, and what is refused."""

import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import FORMATS, Program, Twin, lower
from spequant.deploy.code_graphs import CodeGraphs
from spequant.deploy.compare import forced
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats.tflite import op_graph, tflite_graph
from spequant.deploy.grids import Grid
from spequant.deploy.operations import Add, Concat, Input, MaxPool, Weighted
from spequant.deploy.tflite_emitter import clip, zeros
from spequant.deploy.tflite_engines import arena_size
from spequant.deploy.tflite_file import read_head, write_tflite
from spequant.deploy.tflite_nodes import schema
from spequant.models import mobilenet_v2, resnet18, vgg16_bn
from spequant.quantizers import LSQ, PACT, SAWB
from support.edge_networks import EDGES
from support.integer_networks import QUANTIZED, Joined, Mixed, Shared, lowered, prepared

QUICK = ("two bits",)
CODES = Grid(0.5, 0, 3)


def graph_of(data):
    """(tensors, operators by name) of a file."""
    s = schema()
    model = s.ModelT.InitFromObj(s.Model.GetRootAs(data))
    (graph,) = model.subgraphs
    kinds = {value: name for name, value in vars(s.BuiltinOperator).items() if isinstance(value, int)}
    for tensor in graph.tensors:
        tensor.data = model.buffers[tensor.buffer].data
    return graph.tensors, [(kinds[model.operatorCodes[op.opcodeIndex].builtinCode], op) for op in graph.operators]


def compared(program: Program, x, engine: str, name: str = "tflite") -> tuple[int, float]:
    """(forced codes that are no ties and others than the twin's, largest difference of answers, in deviations)"""
    start, graphs = partial(ENGINES[engine], threads=1), FORMATS[name].graphs
    assert graphs is not None
    found = forced(program, x, start, graphs)
    expected = Twin(program)(x)
    (got,) = start(graphs.whole(program).data)({"input": x.numpy()})
    assert got.shape == tuple(expected.shape)
    apart = float((torch.from_numpy(got) - expected).abs().max() / expected.std())
    return sum(f.unequal - f.ties for f in found.values()), apart


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in QUANTIZED])
def test_litert_computes_the_twins_codes(name):
    case = lowered(name)
    wrong, apart = compared(case.program, case.x, "litert")
    assert wrong == 0 and apart < 1e-3


def unequal(program: Program, x: torch.Tensor, engine: str) -> set[str]:
    """Operations that have other codes than the twin, as a file names them."""
    found = forced(program, x, partial(ENGINES[engine], threads=1), CodeGraphs(tflite_graph, op_graph))
    return {f"{op.name} [{op.grid.low}, {op.grid.high}]" for op, f in found.items() if op.grid and f.unequal}


def listed(program: Program, engine: str, path) -> set[str]:
    """Operations in which, as the file says, `engine` gives some sums another code."""
    write_tflite(tflite_graph(program).data, path)
    return {name for name, counts in read_head(path)["unequal"].items() if counts[engine]}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in QUANTIZED])
def test_microcontrollers_compute_them_but_for_what_the_file_lists(name, tmp_path):
    case = lowered(name)
    wrong = unequal(case.program, case.x[:8], "tflm")
    others = listed(case.program, "tflm", tmp_path / "net.tflite")
    assert wrong <= others and bool(wrong) == (name == "eight bits"), name
    _, apart = compared(case.program, case.x[:8], "tflm")
    assert apart < (0.3 if wrong else 1e-3)


class Row(nn.Module):
    """Convolutions over one dimension."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.b, self.c = nn.Conv1d(6, 4, 3, stride=2, dilation=2), nn.Linear(4 * 6, 3)

    def forward(self, x):
        return self.c(torch.flatten(torch.relu(self.b(torch.relu(self.norm(self.a(x))))), 1))


class Squeezed(nn.Module):
    """Float islands: a sigmoid that multiplies, a mean, a maximum; a float layer with groups at both ends."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.d, self.norm = nn.Conv2d(8, 6, 1), nn.Linear(6, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        y = torch.relu(self.b(torch.relu(self.a(x))))
        y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        return self.norm(self.d(self.c(y).amax((2, 3))))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["litert", "tflm"])
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Mixed, (16, 1, 8, 8)),
        (Joined, (16, 3, 8, 8)),
        (Shared, (16, 1, 8, 8)),
        (Row, (16, 2, 16)),
        (Squeezed, (16, 4, 9, 9)),
    ],
)
def test_every_kind_of_layer(network, shape, engine):
    x = torch.randn(shape)
    for options in ({}, {"ends": None}):
        program = lower(prepared(network(), x, LSQ(3), PACT(3), **options), x[:1])
        wrong, apart = compared(program, x, engine)
        assert wrong == 0 and apart < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["litert", "tflm"])
@pytest.mark.parametrize("name", ["two bits", "lsq"])
def test_weights_of_4_bits_change_no_code(name, engine):
    case = lowered(name)
    wrong, apart = compared(case.program, case.x[:8], engine, "tflite4")
    assert wrong == 0 and apart < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("network", "size"), [(vgg16_bn, 32), (mobilenet_v2, 32), (resnet18, 64)])
def test_larger_networks(network, size):
    x = torch.randn(8, 3, size, size)
    program = lower(prepared(network(), x, SAWB(4), PACT(4)), x[:1])
    wrong, apart = compared(program, x, "litert")
    assert wrong <= 2 and apart < 0.02


EDGES_HELD = ("MLPerf Tiny ResNet-8", "MLPerf Tiny DS-CNN", "U-Net, transposed", "U-Net, nearest", "ESPCN")
EDGES_HELD += ("detector like VGG-SSD", "CNN of one dimension")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EDGES_HELD)
def test_networks_of_edges(name, tmp_path):
    """Integers throughout: LiteRT has the twin's codes, TensorFlow Lite Micro but for what the file lists."""
    torch.manual_seed(0)
    x = torch.randn(4, *EDGES[name].shape)
    program = lower(prepared(EDGES[name].make().eval(), x, SAWB(4), LSQ(4), between=8), x[:1])
    expected = Twin(program).outputs(x)
    others = listed(program, "tflm", tmp_path / "net.tflite")
    for engine, images, most in (("litert", 4, 1e-3), ("tflm", 1, 0.1 if others else 1e-3)):
        assert unequal(program, x[:images], engine) <= (others if engine == "tflm" else set())
        got = ENGINES[engine](tflite_graph(program).data)({"input": x[:images].numpy()})
        for values, exact in zip(got, expected.values(), strict=True):
            assert float((torch.from_numpy(values) - exact[:images]).abs().max() / exact.std()) < most


@pytest.mark.slow
def test_several_outputs_have_names(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    model = prepared(EDGES["detector like VGG-SSD"].make().eval(), x, between=8)
    report = spequant.export(model, tmp_path / "net.tflite", [x])
    loaded = spequant.load(report.path)
    assert loaded.outputs == ("boxes", "classes")
    with torch.no_grad():
        expected = model(x)
    for name, values in loaded(x).items():
        torch.testing.assert_close(values, expected[name], rtol=1e-3, atol=1e-3)


def test_an_input_may_be_an_output_and_one_result_several():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            y = self.a(x)
            return {"given": x, "one": y, "same": y}

    x = torch.randn(8, 4)
    program = lower(prepared(Twice(), x), x[:1])
    got = ENGINES["litert"](tflite_graph(program).data)({"input": x.numpy()})
    for values, expected in zip(got, Twin(program).outputs(x).values(), strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-4)


def one_layer() -> tuple[Input, Weighted]:
    """From two bits to two."""
    source = Input("x", (), CODES, (1, 2, 4, 4))
    weight = torch.tensor([[-3, 1], [3, -1], [1, 1]], dtype=torch.int16)[:, :, None, None]
    parts = weight, torch.tensor([0.2, 0.1, 0.05]).double(), torch.tensor([0.1, 0.2, 0.0]).double()
    return source, Weighted("layer", (source,), Grid(0.25, 0, 3), (1, 3, 2, 2), *parts, (2, 2), (0, 0), (1, 1))


def test_the_numbers_in_a_file():
    """Weights are times 42, codes at the upper end of int8, kept there by RELU."""
    source, op = one_layer()
    graph = op_graph(op)
    tensors, operators = graph_of(graph.data)
    ((kind, node),) = operators
    x, w, b, y = (tensors[i] for i in (*node.inputs, *node.outputs))
    assert (kind, x.shape.tolist(), y.shape.tolist()) == ("CONV_2D", [1, 4, 4, 2], [1, 2, 2, 3])
    assert graph.zero == {source: 124, op: 124} and [t.quantization.zeroPoint[0] for t in (x, y)] == [124, 124]
    assert (node.builtinOptions.strideH, node.builtinOptions.strideW) == (2, 2)
    assert node.builtinOptions.fusedActivationFunction == schema().ActivationFunctionType.RELU
    np.testing.assert_array_equal(w.data.view(np.int8).reshape(3, 2), 42 * op.weight[:, :, 0, 0].numpy())
    np.testing.assert_allclose(w.quantization.scale, [0.2 / 42, 0.1 / 42, 0.05 / 42], rtol=0.3)  # where steps allow
    np.testing.assert_allclose(b.quantization.scale, 0.5 * w.quantization.scale, rtol=1e-6)
    assert b.data.view(np.int32).tolist() == pytest.approx([42, 168, 0], abs=42)
    (got,) = ENGINES["litert"](graph.data)({"in0": np.full((1, 2, 4, 4), 124 + 3, np.int8)})
    assert (got[0, :, 0, 0] - 124).tolist() == [0, 2, 1]  # of (-0.5, 0.5, 0.15) / 0.25, at least 0


def test_half_a_byte():
    """Codes of -3 .. 3 times 2, two in a byte, on input codes that are stored 85 times as large."""
    _, op = one_layer()
    graph = op_graph(op, micro=True)
    tensors, operators = graph_of(graph.data)
    assert [kind for kind, _ in operators] == ["QUANTIZE", "CONV_2D"]
    spread, weight, _ = (tensors[i] for i in operators[1][1].inputs)
    assert weight.type == schema().TensorType.INT4 and weight.shape.tolist() == [3, 1, 1, 2]
    assert weight.data.tolist() == [0x2A, 0xE6, 0x22]  # (-6, 2), (6, -2), (2, 2)
    assert spread.quantization.zeroPoint[0] == -128
    np.testing.assert_allclose(spread.quantization.scale, [0.5 / 85], rtol=1e-6)
    for engine in ("litert", "tflm"):
        (got,) = ENGINES[engine](graph.data)({"in0": np.full((1, 2, 4, 4), 124 + 3, np.int8)})
        assert (got[0, :, 0, 0] - 124).tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("low", "high", "zero", "activation", "unit"),
    [
        (0, 3, 124, "RELU", 0.5),
        (0, 255, -128, "NONE", 0.5),
        (-128, 127, 0, "NONE", 0.5),
        (-127, 127, 0, "RELU_N1_TO_1", 1 / 127),
        (-2, 1, 126, "RELU_N1_TO_1", 0.5),
        (-1, 4, -127, "RELU_N1_TO_1", 0.25),
        (0, 3, 0, "RELU6", 2.0),
        (2, 3, 124, None, 0.5),
    ],
)
def test_how_few_levels_are_kept(low, high, zero, activation, unit):
    grid = Grid(0.5, low, high)
    how = clip(grid, zero)
    assert (how.activation, how.unit) == (activation, np.float32(unit))
    source = Input("x", (), grid, (1, 3))
    if activation != "RELU6":  # where another tensor that it is joined to decides
        assert zeros([source]) == {source: zero}


@pytest.mark.parametrize("engine", ["litert", "tflm"])
def test_sums_that_an_addition_reads_are_clipped_in_their_own_scale(engine):
    """Stored one larger than they stay, so that QUANTIZE leaves the lowest where the last but one gets to."""
    source, layer = one_layer()
    op = replace(layer, grid=Grid(0.002, -127, 127))
    graph = op_graph(op)
    tensors, operators = graph_of(graph.data)
    assert [kind for kind, _ in operators][-2:] == ["CONV_2D", "QUANTIZE"] and graph.zero[op] == -1
    ends = [tensors[i].quantization for i in (*operators[-1][1].inputs, *operators[-1][1].outputs)]
    assert [(e.scale[0], e.zeroPoint[0]) for e in ends] == [(np.float32(0.002), 0), (np.float32(0.002), -1)]
    for code, expected in ((3, [-127, 127, 75]), (0, [50, 100, 0])):
        (got,) = ENGINES[engine](graph.data)({"in0": np.full((1, 2, 4, 4), graph.zero[source] + code, np.int8)})
        assert (got[0, :, 0, 0] + 1).tolist() == expected


def test_what_is_joined_has_one_zero():
    a, b = Input("a", (), Grid(0.5, 0, 3), (1, 2, 4, 4)), Input("b", (), Grid(0.5, -3, 2), (1, 2, 4, 4))
    pool = MaxPool("pool", (a,), a.grid, (1, 2, 2, 2), (2, 2), (2, 2), (0, 0))
    joined = Concat("joined", (pool, b), b.grid, (1, 4, 2, 2))
    other = Input("other", (), Grid(0.5, 0, 3), (1, 2))
    assert zeros([a, b, pool, joined, other]) == {**dict.fromkeys((a, b, pool, joined), 124), other: 124}
    assert zeros([a, pool]) == {a: 124, pool: 124}


@pytest.mark.parametrize(("low", "high"), [(-127, 127), (-7, 7), (0, 15), (0, 255), (3, 9)])
@pytest.mark.parametrize("engine", ["litert", "tflm"])
def test_sums_of_all_pairs_of_codes(engine, low, high):
    """Kept in their grid by operators where no activation does it; ties are decided by the last bits of a scale."""
    step = 0.2817 if high > 15 else 5.1
    a, b = Input("a", (), Grid(0.3127, -127, 127), (1, 256)), Input("b", (), Grid(0.1031, 0, 255), (1, 256))
    op = Add("sum", (a, b), Grid(float(np.float32(step)), low, high), (1, 256))
    codes = torch.arange(256, dtype=torch.int32)
    pairs = (codes - 127).clamp(max=127)[:, None].repeat(1, 256), codes.repeat(256, 1)
    graph = op_graph(op)
    feed = {f"in{i}": graph.stored(x, s) for i, (x, s) in enumerate(zip(pairs, (a, b), strict=True))}
    (got,) = ENGINES[engine](graph.data)(feed)
    expected = torch.round(op.compute(pairs)).clamp(low, high).numpy()
    np.testing.assert_array_equal(got.astype(int) - graph.zero[op], expected)


def test_a_file_says_what_it_is(tmp_path):
    case, path = lowered("two bits"), tmp_path / "net.tflite"
    pixels = (60 * case.x + 128).clamp(0, 255).byte()
    mean, std = (0.502,), (0.2353,)
    about = {"of": "a test", "class_names": [f"class {i}" for i in range(case.program.output.shape[1])]}
    report = spequant.export(case.model, path, [pixels], preprocessing=(mean, std), about=about)
    assert report.format == "tflite" and report.parity.agreement == 1 and report.size == path.stat().st_size
    loaded = spequant.load(path)
    assert (loaded.format, loaded.engines, loaded.about) == ("tflite", ("litert", "tflm"), about)
    assert (loaded.shape, loaded.act_bits, loaded.preprocessing) == ((1, 8, 8), (2, 8), ([0.502], [0.2353]))
    normal = (pixels.float() / 255 - mean[0]) / std[0]
    np.testing.assert_allclose(loaded(pixels), case.twin(normal), atol=1e-3)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == about["class_names"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"net\.tflite was changed"):
        spequant.load(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.tflite"):
        spequant.deploy.tflite_file.read_tflite(tmp_path / "absent.tflite", "tflite", ())


def test_memory_of_a_microcontroller(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(tflite_graph(lowered("two bits").program).data)
    assert 8 * 8 * 4 < arena_size(path) < 2**16


def test_what_has_no_form_is_named():
    x, rest = torch.randn(4, 1, 4, 4, 4), (nn.ReLU(), nn.Conv3d(2, 2, 1), nn.Flatten(), nn.Linear(16, 2))
    model = prepared(nn.Sequential(nn.Conv3d(1, 2, 3), *rest), x)
    with pytest.raises(ValueError, match=r"^0: .*tflite.* 3 dimensions"):
        tflite_graph(lower(model, x[:1]))
    source = Input("x", (), CODES, (1, 2))
    parts = torch.tensor([[-128, 5]], dtype=torch.int8), torch.tensor([-0.1]).double(), torch.zeros(1).double()
    with pytest.raises(ValueError, match=r"^deep: .*-128.* negative"):
        op_graph(Weighted("deep", (source,), CODES, (1, 1), *parts))
