"""Tensors that two quantizers read: one rounding in exports where their ranges agree."""

import numpy as np
import pytest
import torch

from spequant.deploy import FORMATS, Twin, align_ranges, integer_graph, read_program, write_onnx
from spequant.deploy.alignment import computed, finer, steps_in
from spequant.deploy.compare import forced
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats.onnx import CODE_GRAPHS
from spequant.deploy.grids import Grid, stored
from spequant.deploy.operations import Add, MaxPool, Weighted
from support.integer_networks import NEEDS_ONNXRUNTIME, session
from support.residual import X, prepared, program_of
from support.tflite_alone import operators


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
