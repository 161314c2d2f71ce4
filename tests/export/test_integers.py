"""The integers of a weighted layer: int8 weights, int32 biases, fp32 scales; where processors clip sums of them."""

from dataclasses import replace

import pytest
import torch

from spequant.export import Program, Twin, lower
from spequant.export.integers import integers, saturates, saturating
from spequant.export.onnx_integer import op_graph, stored
from spequant.export.program import Grid, Op, Weighted
from spequant.quantizers import PACT, SAWB
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered, prepared, session, small


def weighted(scale, offset, codes=((-3, 1), (3, -1)), step=0.5):
    source = Op("x", (), Grid(0.1, 0, 3), (1, 2))
    made = [torch.tensor(v, dtype=torch.float64) for v in (scale, offset)]
    return Weighted("w", (source,), Grid(step, 0, 3), (1, 2), torch.tensor(codes, dtype=torch.int16), *made)


def test_negative_and_vanishing_gammas_and_large_biases():
    plain = integers(weighted([0.2, 0.2], [1.0, -1.0]))
    assert plain.weight.tolist() == [[-126, 42], [126, -42]] and plain.bias.tolist() == [2100, -2100]
    flipped = integers(weighted([-0.2, 0.2], [1.0, -1.0]))
    assert flipped.weight.tolist() == [[126, -42], [126, -42]] and (flipped.scale > 0).all()
    assert flipped.bias.tolist() == [2100, -2100]
    for tiny in (0.0, 1e-12, -1e-12):
        made = integers(weighted([tiny, 0.2], [1.0, 0.0]))
        assert made.weight[0].tolist() == [0, 0] and made.scale[0] > 0
        assert float(made.bias[0] * made.scale[0].double() * 0.1) == pytest.approx(1.0, rel=1e-6)
    nothing = integers(weighted([0.0, 0.2], [0.0, 0.0]))
    assert nothing.weight[0].tolist() == [0, 0] and nothing.bias[0] == 0 and nothing.scale[0] > 0
    lowest = integers(weighted([-0.2, 0.2], [1.0, 1.0], codes=((-128, 1), (5, 5))))
    assert lowest.weight[0].tolist() == [-128, 1] and lowest.scale[0] < 0 and int(lowest.bias[0]) < 0


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize("scale", [[-0.2, 0.2], [0.0, 0.2], [1e-12, -0.3]])
@pytest.mark.parametrize("codes", [((-3, 1), (3, -1)), ((-128, 1), (5, 5))])
def test_engines_agree_on_them(scale, codes):
    op = weighted(scale, [0.3, -0.2], codes, 0.02)
    op = replace(op, grid=Grid(0.02, -127, 127))
    x = torch.cartesian_prod(torch.arange(4), torch.arange(4)).int()
    expected = Twin(Program([*op.inputs, op], op)).step(op, [x])
    (got,) = session(op_graph(op)).run(None, {"in0": stored(x, op.inputs[0].grid)})
    assert (got == stored(expected, op.grid)).all()
    value = op.scale * 0.1 * (x.double() @ op.weight.double().T) + op.offset
    assert (torch.round(value / 0.02).clamp(-127, 127) - expected).abs().max() <= 1


def test_where_16_bits_are_too_few():
    program = lowered("four bits").program
    assert {op.name for op in program.ops if isinstance(op, Weighted) and saturates(op)} == {"conv1", "linear"}
    assert saturating(program) == ["conv1", "linear"]
    x = torch.randn(16, 1, 8, 8)
    assert saturating(lower(prepared(small(), x, SAWB(4), PACT(4), ends=7), x[:1])) == []
