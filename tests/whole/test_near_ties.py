"""Sums that are 1e-5 of a code off the middle of two get the twin's code in every engine: it may be that of many
positions, as sums of few codes are few."""

import pytest
import torch

from spequant.deploy import FORMATS, Program, Twin
from spequant.deploy.engines import ENGINES
from spequant.deploy.grids import Grid
from spequant.deploy.operations import Add, Input, Weighted


def layer(high):
    """-0.5000124 of codes -high .. high for the input's code 1."""
    source = Input("x", (), Grid(0.1, 0, 15), (1, 1, 4, 4))
    numbers = torch.tensor([5.000124], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    weight = torch.full((1, 1, 1, 1), -1, dtype=torch.int16)
    return Weighted("layer", (source,), Grid(1.0, -high, high), (1, 1, 4, 4), weight, *numbers, (1, 1), (0, 0), (1, 1))


def addition(high):
    """0.5000093 of codes -1 .. 1 for the codes 4 and 12."""
    a, b = (
        Input(name, (), Grid(step, -127, 127), (1, 1, 4, 4))
        for name, step in (("a", 0.0636484623), ("b", 0.05429925397))
    )
    return Add("sum", (a, b), Grid(1.8123359680175781, -high, high), (1, 1, 4, 4))


@pytest.mark.parametrize("make", [layer, addition])
@pytest.mark.parametrize("high", [1, 7])
@pytest.mark.parametrize(("format", "engine"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_the_code_of_a_sum_near_a_tie_is_the_twins(format, engine, high, make):
    pytest.importorskip(engine)
    op, shape = make(high), (1, 1, 4, 4)
    codes = [torch.full(shape, code, dtype=torch.int32) for code in ((1,) if make is layer else (4, 12))]
    expected = Twin(Program([*op.inputs, op], op)).step(op, codes)
    graph = FORMATS[format].graphs.one(op)
    feed = {f"in{i}": graph.stored(x, source) for i, (x, source) in enumerate(zip(codes, op.inputs, strict=True))}
    (got,) = ENGINES[engine](graph.data)(feed)
    assert expected.abs().min() == 1 and (got == graph.stored(expected, op)).all()
