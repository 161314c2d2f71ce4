"""Exported files: read back to the same program, refused where changed, and run by OpenVINO and qonnx."""

import os
import random
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import spequant
from spequant.export import (
    Twin,
    at_width,
    integer_graph,
    lower,
    model_costs,
    program_costs,
    quant_graph,
    quantize_biases,
    read_onnx,
    read_openvino,
    read_program,
    totals,
    write_onnx,
    write_openvino,
)
from spequant.export.biases import move
from spequant.export.engines import ENGINES, compile_openvino
from spequant.export.integers import saturates
from spequant.export.onnx_integer import stored
from spequant.export.onnx_quant import fewest_bits
from spequant.export.parity import Parity, compare, forced, integer_ops
from spequant.export.program import Grid, Weighted
from spequant.export.seal import MARK, sealed
from spequant.models import mobilenet_v2, resnet8, vgg16_bn
from spequant.precision import LowBit
from spequant.processor import instruction_sets, processor_name
from spequant.quantizers import LSQ, PACT, SAWB, DoReFa, LeastSquares, MinMax
from support.processor import skip_if_clipped

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
NETWORKS = {
    "two bits": (SAWB(2), PACT(2), {}),
    "one bit": (SAWB(1), PACT(1), {}),
    "four bits": (SAWB(4), PACT(4), {}),
    "lsq": (LSQ(2), LSQ(3), {"per_channel": True}),
    "float ends": (LeastSquares(2), MinMax(4), {"ends": None}),
    "dorefa": (DoReFa(3), DoReFa(3), {"ends": 7}),
}


def prepared(network, x, weight, act, **options):
    model = spequant.prepare(network, weight=weight, act=act, **options)
    spequant.calibrate(model, [x], samples=len(x))
    quantize_biases(model, x[:1])
    return model.eval()


@pytest.fixture(scope="module")
def x():
    return torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=NETWORKS, ids=str)
def model(request, x):
    torch.manual_seed(0)
    weight, act, options = NETWORKS[request.param]
    return prepared(resnet8(in_channels=1), x, weight, act, **options)


def test_a_file_is_read_back_to_the_program_it_was_made_of(model, x, tmp_path):
    program = lower(model, x[:1])
    graph = integer_graph(program, about={"of": "a test"})
    write_onnx(graph, tmp_path / "net.onnx")
    again, preprocessing, about = read_program(tmp_path / "net.onnx")
    assert about == {"of": "a test"} and preprocessing is None
    assert integer_graph(again).graph == graph.graph
    assert torch.equal(Twin(again)(x), Twin(program)(x))


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_a_file_at_another_width_is_the_network_at_that_width(x, bits, tmp_path):
    model = prepared(resnet8(in_channels=1), x, SAWB(2), PACT(2))
    write_onnx(integer_graph(lower(model, x[:1])), tmp_path / "net.onnx")
    changed = at_width(read_program(tmp_path / "net.onnx")[0], bits)
    with spequant.precision(model, LowBit(bits)):
        program, logits = lower(model, x[:1]), model(x)
    assert [op.grid for op in changed.ops] == [op.grid for op in program.ops]
    # A step of 8 bits is so fine that biases are off it, torch's own answers differ by as much.
    torch.testing.assert_close(Twin(changed)(x), Twin(program)(x), rtol=0, atol=0.1 if bits == 8 else 1e-5)
    if bits > 1:  # where the grid gets coarser, biases are off it, and torch's answers are others
        assert (Twin(changed)(x).argmax(1) == logits.argmax(1)).float().mean() >= 0.98
    skip_if_clipped(changed)
    (got,) = ENGINES["onnxruntime"](integer_graph(changed).SerializeToString())({"input": x.numpy()})
    np.testing.assert_allclose(got, Twin(changed)(x), rtol=1e-4, atol=1e-5)


class Clamped(nn.Module):
    """One quantizer reads two branches, of which one ends at `top`."""

    def __init__(self, top):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 3, 4)
        self.top = top

    def forward(self, x):
        y = torch.cat([torch.relu(self.a(x)), torch.clamp(self.b(x), 0, self.top)], 1)
        return torch.flatten(self.d(torch.relu(self.c(y))), 1)


@pytest.mark.parametrize("top", [0.2, 0.05])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_clamps_stay_where_they_are_at_another_width(x, top, bits, tmp_path):
    model = prepared(Clamped(top), x, SAWB(2), PACT(2))
    program = lower(model, x[:1])
    write_onnx(integer_graph(program), tmp_path / "net.onnx")
    with spequant.precision(model, LowBit(bits)):
        expected = lower(model, x[:1])
    changed = at_width(read_program(tmp_path / "net.onnx")[0], bits)
    assert [op.grid for op in changed.ops] == [op.grid for op in expected.ops]
    (end,) = [op.grid.high for op in expected.ops if op.name == "b"]
    assert end < 2**bits - 1


@pytest.mark.parametrize(
    ("grid", "ends", "expected"),
    [
        (Grid(0.6, -1, 1), (-5.0, -1.0), (-1, -1)),
        (Grid(1.0, 0, 3), (5.0, float("inf")), (3, 3)),
        (Grid(1.0, 0, 3), (-float("inf"), -2.0), (0, 0)),
        (Grid(0.5, -127, 127), (0.0, 6.0), (0, 12)),
    ],
)
def test_a_clamped_grid_stays_within_the_grid(grid, ends, expected):
    clamped = grid.clamped(*ends)
    assert (clamped.low, clamped.high) == expected
    again = clamped.clamped(-1.0, 1.0)
    assert clamped.low <= again.low <= again.high <= clamped.high


def test_what_was_trained_at_the_recipes_bits_changes(x):
    """Not what has the fewest: 7-bit ends of an 8-bit network stay."""
    model = prepared(resnet8(in_channels=1), x, SAWB(8), PACT(8), ends=7)
    program = at_width(lower(model, x[:1]), 4, 8)
    with spequant.precision(model, LowBit(4, 8)):
        assert [op.grid for op in program.ops] == [op.grid for op in lower(model, x[:1]).ops]
    highs = {op.name: op.inputs[0].grid.high for op in program.ops if isinstance(op, Weighted)}
    assert highs["conv1"] == 63 and highs["linear"] == 127 and highs["layer1.0.conv1"] == 15
    with pytest.raises(ValueError, match=r"trained is 5; activations here were trained at \[7, 8\] bits"):
        at_width(program, 4, 5)
    with (
        pytest.raises(ValueError, match=r"trained is 5; activations here have \[7, 8\] bits"),
        spequant.precision(model, LowBit(4, 5)),
    ):
        pass


class Shared(nn.Module):
    """One convolution called twice, at two resolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 16, 3)

    def forward(self, x):
        y = torch.relu(self.again(self.first(x)))
        y = torch.relu(self.again(nn.functional.max_pool2d(y, 2)))
        return self.last(torch.flatten(y, 1))


class Mixed(nn.Module):
    """A quantizer of both signs reads, beside each other, what a ReLU leaves and what none touched."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(8, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        y = torch.cat([nn.functional.max_pool2d(torch.relu(self.a(x)), 1), self.b(x)], 1)
        return self.d(torch.flatten(nn.functional.max_pool2d(torch.relu(self.c(y)), 2), 1))


class Joined(nn.Module):
    """Concatenation, clamps, groups, max pooling; a negative, a vanishing and a tiny gamma."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm, self.pool = nn.BatchNorm2d(4), nn.MaxPool2d(3, 2, 1)
        self.c, self.d = nn.Conv2d(8, 8, 3, groups=2), nn.Linear(32, 5)
        self.norm.weight.data = torch.tensor([-0.7, 0.0, 1e-12, 0.9])
        self.norm.bias.data = torch.tensor([0.4, 0.6, 0.5, -0.1])

    def forward(self, x):
        y = torch.cat([torch.relu(self.norm(self.a(x))), self.b(x).clamp(0, 1)], 1)
        y = self.c(self.pool(y))
        return self.d(torch.flatten(y, 1))


@pytest.mark.parametrize(("network", "shape"), [(Mixed, (64, 1, 8, 8)), (Joined, (32, 3, 8, 8))])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "qonnx"])
def test_two_signs_gammas_concatenation_and_groups_in_every_engine(engine, network, shape):
    pytest.importorskip(engine)
    x = torch.randn(shape)
    model = prepared(network(), x, SAWB(3), PACT(3))
    program = lower(model, x[:1])
    twin = Twin(program)(x)
    torch.testing.assert_close(twin, model(x), rtol=1e-3, atol=1e-3)
    if engine != "qonnx":  # which computes in float
        skip_if_clipped(program)
    graph = quant_graph(program) if engine == "qonnx" else integer_graph(program)
    (got,) = ENGINES[engine](graph.SerializeToString())({"input": x.numpy()})
    np.testing.assert_allclose(got, twin.numpy(), rtol=1e-3, atol=1e-3)
    if engine != "qonnx":
        assert all(f.unequal == f.ties for f in forced(program, x, ENGINES[engine]).values())


def test_a_layer_may_be_called_twice(x, tmp_path):
    model = prepared(Shared(), x, SAWB(2), PACT(2))
    parity = spequant.export_onnx(model, tmp_path / "net.onnx", [x, x[:7], x[:1]])
    assert parity.images == 72 and not any(c.twin for c in parity.codes)
    assert {c.name.split()[0]: c.torch for c in parity.codes}["first"] is None  # which of the calls is not told apart
    (cost,) = [c for c in model_costs(model, x) if c.name == "again"]
    assert cost.weights == 144 and cost.macs == 144 * (64 + 16)


def test_shapes_that_have_no_form_are_named():
    def lowered(network, x):
        model = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
        spequant.calibrate(model, [x], samples=len(x), reestimate=False)
        return lower(model, x[:1])

    with pytest.raises(ValueError, match="0: a linear layer on inputs of 3 dimensions has no integer form here"):
        lowered(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)), torch.randn(8, 4, 6))

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 3, 3), nn.Linear(1, 2)

        def forward(self, x):
            return self.b(torch.mean(self.a(x), (-2, -1), keepdim=True).flatten(1))

    with pytest.raises(ValueError, match="mean on 3 dimensions has no form here; expected 4"):
        lowered(Mean(), torch.randn(8, 2, 6))
    model = prepared(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)), torch.randn(8, 1, 8, 8), SAWB(2), PACT(2)
    )
    with pytest.raises(ValueError, match=r"0\.layer\.weight is torch\.float16; expected torch\.float32"):
        lower(model.half(), torch.randn(1, 1, 8, 8))


def test_a_width_out_of_range_is_refused(x):
    program = lower(prepared(resnet8(in_channels=1), x, SAWB(2), PACT(2)), x[:1])
    with pytest.raises(ValueError, match="bits is 9; expected a whole number of bits from 1 to 8"):
        at_width(program, 9)


def test_changed_files_are_refused(x, tmp_path):
    """Every byte counts: 500 changed files, not one of them is read."""
    model = prepared(resnet8(in_channels=1), x, SAWB(2), PACT(2))
    write_onnx(integer_graph(lower(model, x[:1])), tmp_path / "net.onnx")
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
        with pytest.raises(ValueError, match=r"changed since its export|holds no seal"):
            read_program(path)


def test_files_that_are_not_ours_and_newer_ones_are_refused(x, tmp_path):
    model = prepared(resnet8(in_channels=1), x, SAWB(2), PACT(2))
    program, path = lower(model, x[:1]), tmp_path / "net.onnx"
    graph = integer_graph(program)
    path.write_bytes(graph.SerializeToString().replace(MARK.encode(), b"x" * len(MARK)))
    with pytest.raises(ValueError, match="not written by `spequant export`"):
        read_program(path)
    newer = graph.SerializeToString().replace(b'"format":1', b'"format":2')
    path.write_bytes(sealed(newer))
    with pytest.raises(ValueError, match="format is 2; this version reads 1"):
        read_program(path)
    path.write_bytes(sealed(graph.SerializeToString().replace(b'"inputs":[0]', b'"inputs":[9]')))
    with pytest.raises(ValueError, match="contradicts itself"):
        read_program(path)
    path.write_bytes(sealed(b"no graph " + MARK.encode() + b"0" * 32))
    with pytest.raises(ValueError, match="is no ONNX file of spequant"):
        read_program(path)
    write_onnx(quant_graph(program), path)
    with pytest.raises(ValueError, match="is a qonnx graph; expected an integer one"):
        read_program(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_program(tmp_path / "nowhere")


def test_openvino_answers_as_the_twin_code_by_code(model, x):
    pytest.importorskip("openvino")
    program = lower(model, x[:1])
    found = forced(program, x, lambda graph: ENGINES["openvino"](graph, 1))
    assert all(f.unequal == f.ties for f in found.values())
    assert sum(f.unequal for f in found.values()) <= 5
    (got,) = ENGINES["openvino"](integer_graph(program).SerializeToString(), 1)({"input": x.numpy()})
    assert (got.argmax(1) == Twin(program)(x).argmax(1).numpy()).mean() >= 0.98


@pytest.mark.parametrize("network", [vgg16_bn, mobilenet_v2])
def test_openvino_on_other_networks(network):
    pytest.importorskip("openvino")
    x = torch.randn(8, 3, 32, 32)
    program = lower(prepared(network(), x, SAWB(4), PACT(4)), x[:1])
    found = forced(program, x, lambda graph: ENGINES["openvino"](graph, 1))
    # Untrained, with biases of many times their sums: fp32 then rounds at other places than ties, in a few codes.
    assert sum(f.unequal for f in found.values()) <= 5


def test_openvino_runs_convolutions_and_additions_in_int8(x):
    """On the compiled graph. Left in float: the option-A shortcuts' identity, which OpenVINO takes apart into pooling
    and a 1 x 1 convolution, the quantization of the input and of the mean, the mean, the output."""
    pytest.importorskip("openvino")
    model = prepared(resnet8(in_channels=1), x, SAWB(2), PACT(2))
    graph = integer_graph(lower(model, x[:1])).SerializeToString()
    compiled = ThreadPoolExecutor(1).submit(compile_openvino, graph, 1).result()
    in_float, in_integers = set(), []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = {
            key: op.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision", "originalLayersNames")
        }
        kind, name = info["layerType"], info["originalLayersNames"]
        if info["runtimePrecision"] in ("u8", "i8"):
            in_integers.append(kind)
        elif kind in ("Convolution", "FullyConnected", "Eltwise") and "pad" not in name:
            in_float.add((kind, name))
    assert in_integers.count("Convolution") == 8 and in_integers.count("FullyConnected") == 1
    assert {kind for kind, _ in in_float} <= {"Eltwise"}
    assert all("DequantizeLinear" in name for _, name in in_float)  # of the option-A shortcuts


def test_signals_reach_python_while_openvino_is_there(x):
    """A signal stack of OpenVINO's in the main thread is too small for Python's handler: a segmentation fault."""
    pytest.importorskip("openvino")
    model = prepared(resnet8(in_channels=1), x, SAWB(2), PACT(2))
    run = ENGINES["openvino"](integer_graph(lower(model, x[:1])).SerializeToString(), 1)
    run({"input": x.numpy()})
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1] and len(run({"input": x.numpy()})[0]) == len(x)


def test_openvinos_files_are_sealed_together(x, tmp_path):
    pytest.importorskip("openvino")
    model = prepared(resnet8(in_channels=1), x, SAWB(2), PACT(2))
    program, path = lower(model, x[:1]), tmp_path / "net.xml"
    write_openvino(integer_graph(program), path, {"of": "a test"})
    assert read_openvino(path) == {"of": "a test"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bin", "net.xml"]
    (got,) = ENGINES["openvino"](path)({"input": x.numpy()})
    np.testing.assert_allclose(got, Twin(program)(x), rtol=1e-3, atol=1e-3)
    for name in ("net.bin", "net.xml"):
        data = (tmp_path / name).read_bytes()
        changed = bytearray(data)
        changed[len(data) // 2] ^= 4
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(ValueError, match="changed since its export"):
            read_openvino(path)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"net\.bin does not exist"):
        read_openvino(path)
    with pytest.raises(ValueError, match=r"expected one that ends in \.xml"):
        write_openvino(integer_graph(program), tmp_path / "net.onnx", {})

    def fails(path):
        raise ValueError("other answers")

    with pytest.raises(ValueError, match="other answers"):
        write_openvino(integer_graph(program), tmp_path / "refused.xml", {}, fails)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.xml"]


WIDTHS = {
    "two bits": ("SCALEDINT<2>", "SCALEDINT<3>"),  # the odd codes of four levels need three bits
    "one bit": ("SCALEDINT<1>", "BIPOLAR"),
    "four bits": ("SCALEDINT<4>", "SCALEDINT<5>"),
    "lsq": ("SCALEDINT<3>", "SCALEDINT<2>"),
}


def test_qonnx_answers_alike_and_its_cost_tool_reads_it(request, model, x, tmp_path):
    pytest.importorskip("qonnx")
    from qonnx.util.inference_cost import inference_cost

    program, path = lower(model, x[:1]), tmp_path / "net.onnx"
    write_onnx(quant_graph(program, about={"of": "a test"}), path)
    graph, head = read_onnx(path)
    assert head["about"] == {"of": "a test"} and "Quant" in {node.op_type for node in graph.graph.node}
    (got,) = ENGINES["qonnx"](path)({"input": x.numpy()})
    np.testing.assert_allclose(got, Twin(program)(x), rtol=1e-4, atol=1e-4)
    assert (got.argmax(1) == model(x).argmax(1).numpy()).all()
    cost = inference_cost(str(path), discount_sparsity=False)["total_cost"]
    name = request.node.callspec.params["model"]
    if name in WIDTHS:
        acts, weights = WIDTHS[name]
        assert cost[f"op_mac_{acts}_{weights}"] == sum(c.macs for c in model_costs(model, x)[1:-1])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 3, (2, 0, 0)),
        (0, 1, (1, 0, 0)),
        (0, 5, (3, 0, 0)),
        (-3, 3, (3, 1, 1)),
        (-4, 3, (3, 1, 0)),
        (-2, 1, (2, 1, 0)),
    ],
)
def test_the_smallest_integer_type(low, high, expected):
    assert fewest_bits(low, high) == expected


def test_comparison_tells_ties_from_bugs(x):
    """An engine whose codes are one off is found, layer by layer, and its export refused."""
    model = prepared(resnet8(in_channels=1), x, SAWB(2), PACT(2))
    program = lower(model, x[:1])
    start = ENGINES["onnxruntime"]
    target = [op for op in integer_ops(program) if isinstance(op, Weighted)][2]

    def wrong(graph):
        run, broken = start(graph), target.name.encode() in graph and len(graph) < 50_000

        def answer(feed):
            return [y ^ 1 if broken and y.dtype == np.uint8 else y for y in run(feed)]

        return answer

    batches = [(x, x.numpy(), torch.zeros(64, dtype=torch.long))]
    run = start(integer_graph(program).SerializeToString())
    good = compare(model, program, run, batches, start)
    good.check("onnxruntime")
    assert good.images == 64 and good.agreement == 1 and not any(c.forced or c.twin for c in good.codes)
    assert sum(c.torch or 0 for c in good.codes) < 100 < sum(c.count for c in good.codes if c.torch is not None)
    bad = compare(model, program, run, batches, wrong)
    with pytest.raises(ValueError, match=f"broken engine computes other codes .* in {re.escape(target.name)}"):
        bad.check("broken engine")


def test_other_answers_are_refused():
    parity = Parity()
    logits = torch.eye(10)[torch.arange(200) % 10]
    other = logits.roll(1, 1)
    parity.add(logits, np.where(np.arange(200)[:, None] < 3, other, logits), torch.arange(200) % 10)
    with pytest.raises(
        ValueError, match=r"another arg-max than the network on 3 of 200 images; expected at most 0\.5 %"
    ):
        parity.check("an engine")
    parity = Parity()
    logits = torch.eye(10)[torch.arange(5000) % 10]
    parity.add(logits, np.where(np.arange(5000)[:, None] < 20, logits.roll(1, 1), logits), torch.arange(5000) % 10)
    with pytest.raises(ValueError, match=r"right on 99\.60 %, the network on 100\.00 %; expected at most 0\.1 points"):
        parity.check("an engine")


def test_answers_at_every_position_single_values_and_few_images_are_compared():
    dense = torch.eye(10)[torch.arange(100) % 10].reshape(2, 50, 10).transpose(1, 2)  # (images, classes, positions)
    parity = Parity()
    parity.add(dense, np.where(np.arange(50) < 3, dense.roll(1, 1), dense), (torch.arange(100) % 10).reshape(2, 50))
    assert (parity.images, parity.equal, parity.labelled, parity.right) == (100, 94, 100, (100, 94))
    with pytest.raises(ValueError, match="on 6 of 100 images"):
        parity.check("an engine")
    values = torch.linspace(-1, 1, 200).unsqueeze(1)  # one an image has no arg-max; a deviation is .58
    for by, refused in ((0.1, False), (0.2, True)):
        parity = Parity()
        parity.add(values, (values + by).numpy(), None)
        assert (parity.images, parity.equal) == (200, 0 if refused else 200)
        assert refuses(parity) is refused
    for images, differ, refused in ((1, 1, True), (2, 1, False), (2, 2, True), (3, 2, True), (4, 2, False)):
        parity = Parity()
        logits = torch.eye(10)[:images]
        parity.add(logits, torch.cat([logits[:differ].roll(1, 1), logits[differ:]]).numpy(), None)
        assert refuses(parity) is refused


def refuses(parity):
    try:
        parity.check("an engine")
    except ValueError:
        return True
    return False


def test_a_bias_is_moved_where_it_is():
    """On a device that this machine lacks: fake tensors know theirs."""
    with FakeTensorMode():
        bias = torch.zeros(3, device="cuda")
        move(bias, torch.ones(3, dtype=torch.float64))
        assert bias.device.type == "cuda"
    bias = torch.tensor([1.0, 2.0])
    move(bias, torch.tensor([0.5, -1.0], dtype=torch.float64))
    assert bias.tolist() == [1.5, 1.0]


@pytest.mark.parametrize(("engine", "own", "refused"), [(30, 15, False), (31, 15, True), (31, 0, True), (5, 0, False)])
def test_an_engine_may_differ_twice_as_often_as_the_network_with_other_last_bits(engine, own, refused):
    parity = Parity()
    logits, number = torch.eye(10)[torch.arange(1000) % 10], torch.arange(1000)[:, None]
    theirs, ours = (torch.where(number < count, logits.roll(1, 1), logits) for count in (engine, own))
    parity.add(logits, theirs.numpy(), None, ours)
    assert (parity.images - parity.equal, parity.own) == (engine, own)
    if not refused:
        return parity.check("an engine")
    twice = f", or twice the {own} on which the network does with other last bits" if own else ""
    with pytest.raises(ValueError, match=rf"on 31 of 1000 images; expected at most 0\.5 %, or 2{twice}\. If"):
        parity.check("an engine")


def test_export_onnx_refuses_other_answers_and_leaves_no_file(x, tmp_path):
    model = spequant.prepare(resnet8(in_channels=1), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [x], samples=64)
    quantize_biases(model, x[:1])
    assert spequant.export_onnx(model, tmp_path / "net.onnx", [x]).agreement == 1
    model.eval()
    first, hooked = True, model.linear

    def once(module, args, output):  # the comparison's forward is another one than the tracing's
        nonlocal first
        first = False
        return output.roll(1, 1)

    handle = hooked.register_forward_hook(once)
    with pytest.raises(ValueError, match="gives another arg-max than the network on 64 of 64 images"):
        spequant.export_onnx(model, tmp_path / "wrong.onnx", [x])
    handle.remove()
    assert not first and [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    with pytest.raises(ValueError, match="images is empty"):
        spequant.export_onnx(model, tmp_path / "wrong.onnx", [])
    with pytest.raises(ValueError, match="images have 3 dimensions; with preprocessing in the graph expected 4"):
        spequant.export_onnx(model, tmp_path / "wrong.onnx", [x[:, 0].byte()], preprocessing=((0.5,), (0.5,)))
    with pytest.raises(ValueError, match="with preprocessing in the graph expected uint8"):
        spequant.export_onnx(model, tmp_path / "wrong.onnx", [x], preprocessing=((0.5,), (0.5,)))


def test_costs_of_a_network_and_of_its_file_agree(x, tmp_path):
    model = prepared(resnet8(in_channels=1), x, SAWB(2), PACT(2))
    costs = {c.name: c for c in model_costs(model, x)}
    conv = costs["layer1.0.conv1"]
    assert (conv.weight_bits, conv.act_bits, conv.weights) == (2, 2, 16 * 16 * 9)
    assert conv.size == 16 * 16 * 9 // 4 and conv.macs == 16 * 16 * 9 * 64 and conv.bit_operations == conv.macs * 4
    assert costs["linear"].size == 640 + 40 and costs["linear"].macs == 640
    total = totals(list(costs.values()))
    assert total["macs"] == sum(c.macs for c in costs.values())
    full = sum(4 * m.weight.numel() for m in resnet8(in_channels=1).modules() if isinstance(m, nn.Conv2d)) + 2600
    assert total["times_smaller_than_fp32"] == pytest.approx(full / total["size"])
    of_file = {c.name: c for c in program_costs(lower(model, x[:1]))}
    for name, cost in costs.items():
        assert (of_file[name].weight_bits, of_file[name].act_bits) == (cost.weight_bits, cost.act_bits)
        assert of_file[name].macs == cost.macs
    with spequant.precision(model, LowBit(4)):
        assert {c.act_bits for c in model_costs(model, x)} == {8, 4}
    plain = model_costs(resnet8(in_channels=1), x)
    assert {c.weight_bits for c in plain} == {32} and totals(plain)["times_smaller_than_fp32"] == 1
    turned = model_costs(nn.ConvTranspose2d(3, 5, 2, stride=2), torch.randn(1, 3, 4, 4))
    assert turned[0].macs == 3 * 5 * 2 * 2 * 16


def test_where_16_bits_are_too_few(x):
    model = prepared(resnet8(in_channels=1), x, SAWB(4), PACT(4))
    ops = [op for op in lower(model, x[:1]).ops if isinstance(op, Weighted)]
    assert {op.name for op in ops if saturates(op)} == {"conv1", "linear"}
    model = prepared(resnet8(in_channels=1), x, SAWB(4), PACT(4), ends=7)
    assert not any(saturates(op) for op in lower(model, x[:1]).ops if isinstance(op, Weighted))


def test_instruction_sets_and_name_are_those_of_the_processor(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("model name : one with avx2\nflags\t\t: fpu sse2 avx512_vnni avx2 amx_int8x\n")
    monkeypatch.setattr("spequant.processor.CPUINFO", str(tmp_path / "cpuinfo"))
    assert instruction_sets() == ["avx2", "avx512_vnni"] and processor_name() == "one with avx2"
    monkeypatch.setattr("spequant.processor.CPUINFO", "/nowhere")
    assert instruction_sets() == [] and processor_name()


def test_stored_codes_lose_nothing(x):
    model = prepared(resnet8(in_channels=1), x, SAWB(8), PACT(8))
    program = lower(model, x[:1])
    values = Twin(program).everything(x)
    for op in integer_ops(program):
        back = stored(values[op], op.grid).astype(int) - (128 if op.grid.signed else 0)
        assert np.array_equal(back, values[op].numpy())
