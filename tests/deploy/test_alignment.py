"""Tensors that two quantizers read: ranges made to agree, and one rounding in exports where they do."""

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import FORMATS, Twin, align_ranges, integer_graph, lower, quantize_biases, read_program, write_onnx
from spequant.deploy.alignment import computed, finer, steps_in
from spequant.deploy.compare import forced
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats.onnx import CODE_GRAPHS
from spequant.deploy.grids import Grid, stored
from spequant.deploy.operations import Add, MaxPool, Weighted
from spequant.models.residual import ResidualAdd
from spequant.quantizers import PACT, SAWB, DoReFa
from support.integer_networks import NEEDS_ONNXRUNTIME, session
from support.tflite_alone import operators

X = torch.randn(16, 1, 12, 12, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A first layer and a sum that are read on few codes by a layer, and on many by an addition."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.last, self.sum, self.sums = nn.MaxPool2d(2), nn.Linear(4 * 25, 3), ResidualAdd(), ResidualAdd()

    def forward(self, x):
        y = self.pool(torch.relu(self.first(x)))
        y = torch.relu(self.sum(self.b(torch.relu(self.a(y))), y))
        y = torch.relu(self.sums(self.d(torch.relu(self.c(y))), y))
        return self.last(torch.flatten(y, 1))


def prepared(bits=2, act=PACT):
    """Calibrated, its ranges as they come."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = spequant.prepare(Residual(), weight=SAWB(bits), act=act(bits)).eval()
        spequant.calibrate(model, [X], samples=len(X))
    return model


def program_of(model):
    quantize_biases(model, X[:1])
    return lower(model, X[:1])


def addends(model):
    return {name: q for name, q in model.named_modules() if name.endswith("shortcut_quantizer")}


@pytest.mark.parametrize(
    ("coarse", "fine", "count"),
    [
        (Grid(0.9, 0, 3), Grid(0.1, 0, 255), 9),
        (Grid(0.9, -1, 1), Grid(0.1, -127, 127), 9),
        (Grid(0.9, 0, 3), Grid(0.1, -127, 127), 9),
        (Grid(0.1, 0, 3), Grid(0.1, 0, 255), 1),
        (Grid(0.8, 0, 3), Grid(0.1, 0, 255), None),  # 0.4 is code 4, not a middle
        (Grid(0.91, 0, 3), Grid(0.1, 0, 255), None),
        (Grid(0.9, 0, 3), Grid(0.1, 0, 22), None),  # 2.2 rounds to the code 2
        (Grid(0.9, -1, 1), Grid(0.1, 0, 255), None),
    ],
)
def test_an_odd_number_of_steps_keeps_all_codes(coarse, fine, count):
    assert steps_in(coarse, fine) == count
    x = np.arange(-40, 40, 0.0137)  # on no middle
    codes = [np.rint(x / grid.step).clip(grid.low, grid.high) for grid in (coarse, fine)]
    through = np.rint(codes[1] / round(coarse.step / fine.step)).clip(coarse.low, coarse.high)
    assert np.array_equal(codes[0], through) == (count is not None)


def test_ranges_move_to_the_nearest_that_agree():
    model = prepared()
    before = {name: float(q.clip.detach()) for name, q in addends(model).items()}
    others = {n: p.clone() for n, p in model.named_parameters() if "shortcut" not in n}
    assert not finer(program_of(model))
    moved = align_ranges(model, X[:1])
    factors = [float(q.clip.detach()) / before[name] for name, q in addends(model).items()]
    assert list(moved.values()) == pytest.approx(factors, rel=1e-5) and len(moved) == 2
    assert all(0 < abs(factor - 1) < 1 / 8 for factor in factors)
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n in others and "bias" not in n)
    assert align_ranges(model, X[:1]) == {}
    assert len(finer(program_of(model))) == 3


def test_ranges_far_from_each_other_stay():
    model = prepared()
    layer, addend = model.get_submodule("a").act_quantizer, next(iter(addends(model).values()))
    for ratio, moves in ((8.0, True), (4.0, False)):
        addend.set_clip(255 * layer.clip.detach() / 3 / ratio)
        clip = addend.clip.clone()
        assert (addend.name in align_ranges(model, X[:1])) == moves
        assert torch.equal(clip, addend.clip) != moves


def test_quantizers_without_a_range_of_their_own_stay():
    model = prepared(3, DoReFa)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    moved = align_ranges(model, X[:1])
    assert all(q.name not in moved for q in model.modules() if isinstance(q, DoReFa))
    assert {n for n, v in model.state_dict().items() if not torch.equal(v, state[n])} <= {
        f"{name}.clip" for name in addends(model)
    }


def test_a_graph_leaves_out_what_follows():
    model = prepared()
    align_ranges(model, X[:1])
    program = program_of(model)
    pairs = finer(program)
    assert {(type(op), op.name) for op in pairs} == {(Weighted, "first"), (MaxPool, "pool"), (Add, "sum")}
    ops = computed(program, pairs)
    assert [op.name for op in ops].count("first") == 1 and set(ops) < set(program.ops)
    assert all(ops.index(i) < ops.index(op) for op in ops for i in ((pairs[op],) if op in pairs else op.inputs))
    assert set(computed(program, pairs, program.ops)) == set(program.ops)
    assert computed(program, {}) == program.ops


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize("bits", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_onnxruntime_has_the_twins_codes_from_one_rounding(bits, tmp_path):
    model = prepared(bits)
    two = integer_graph(program_of(model))
    align_ranges(model, X[:1])
    program = program_of(model)
    one = integer_graph(program)
    convolutions = [sum(node.op_type == "Conv" for node in graph.graph.node) for graph in (two, one)]
    assert convolutions == [6, 5]
    taps, values = program.integer_ops, Twin(program).everything(X)
    out, *codes = session(integer_graph(program, taps=taps)).run(None, {"input": X.numpy()})
    assert all((c == stored(values[op], op.grid)).all() for c, op in zip(codes, taps, strict=True))
    assert not any(f.unequal for f in forced(program, X, ENGINES["onnxruntime"], CODE_GRAPHS).values())
    np.testing.assert_allclose(out, model(X).detach(), rtol=1e-3, atol=1e-3)
    write_onnx(one, tmp_path / "net.onnx")
    again, *_ = read_program(tmp_path / "net.onnx")
    assert torch.equal(Twin(again)(X), Twin(program)(X)) and len(again.ops) == len(program.ops)


@pytest.mark.parametrize(
    ("engine", "bits"),
    [("litert", 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("litert", 4), ("tflm", 2)))],
)
def test_tflite_files_have_the_twins_codes_from_one_rounding(engine, bits):
    model, graphs = prepared(bits), FORMATS["tflite"].graphs
    assert graphs is not None
    twice = operators(graphs.whole(program_of(model)).data)
    align_ranges(model, X[:1])
    program = program_of(model)
    x, taps = X[:4], program.integer_ops
    one, whole = graphs.whole(program), graphs.whole(program, taps=taps)
    once = operators(one.data)
    assert [row.count("CONV_2D") for row in (twice, once)] == [6, 5] and len(once) < len(twice)
    wrong = forced(program, x, ENGINES[engine], graphs)
    assert wrong.keys() > finer(program).keys() and not any(f.unequal for f in wrong.values())
    values, got = Twin(program).everything(x), ENGINES[engine](whole.data)({"input": x.numpy()})
    assert all((c == whole.stored(values[op], op)).all() for c, op in zip(got[1:], taps, strict=True))
