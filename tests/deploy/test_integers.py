"""The integers of a weighted layer: int8 weights, int32 biases, fp32 scales; where processors clip sums of them."""

from dataclasses import replace

import pytest
import torch

from spequant.deploy import Program, Twin, lower
from spequant.deploy.formats.onnx import op_graph
from spequant.deploy.grids import Grid, stored
from spequant.deploy.integers import INT32_MAX, check_sum, largest_sums
from spequant.deploy.operations import Input, Weighted
from spequant.quantizers import PACT, SAWB
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered, prepared, session, small


def weighted(scale, offset, codes=((-3, 1), (3, -1)), step=0.5):
    source = Input("x", (), Grid(0.1, 0, 3), (1, 2))
    made = [torch.tensor(v, dtype=torch.float64) for v in (scale, offset)]
    return Weighted("w", (source,), Grid(step, 0, 3), (1, 2), torch.tensor(codes, dtype=torch.int16), *made)


def test_negative_and_vanishing_gammas_and_large_biases():
    plain = weighted([0.2, 0.2], [1.0, -1.0]).integers
    assert plain.weight.tolist() == [[-126, 42], [126, -42]] and plain.bias.tolist() == [2100, -2100]
    flipped = weighted([-0.2, 0.2], [1.0, -1.0]).integers
    assert flipped.weight.tolist() == [[126, -42], [126, -42]] and (flipped.scale > 0).all()
    assert flipped.bias.tolist() == [2100, -2100]
    for tiny in (0.0, 1e-12, -1e-12):
        made = weighted([tiny, 0.2], [1.0, 0.0]).integers
        assert made.weight[0].tolist() == [0, 0] and made.scale[0] > 0
        assert float(made.bias[0] * made.scale[0].double() * 0.1) == pytest.approx(1.0, rel=1e-6)
    nothing = weighted([0.0, 0.2], [0.0, 0.0]).integers
    assert nothing.weight[0].tolist() == [0, 0] and nothing.bias[0] == 0 and nothing.scale[0] > 0
    lowest = weighted([-0.2, 0.2], [1.0, 1.0], codes=((-128, 1), (5, 5))).integers
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
    assert {op.name for op in program.ops if isinstance(op, Weighted) and op.saturates} == {"conv1", "linear"}
    assert program.saturating() == ["conv1", "linear"]
    x = torch.randn(16, 1, 8, 8)
    assert lower(prepared(small(), x, SAWB(4), PACT(4), ends=7), x[:1]).saturating() == []


def test_the_largest_sum_is_that_of_the_worst_codes():
    weight = torch.randint(-8, 8, (5, 3, 2))
    for low, high in ((0, 3), (-3, 3), (1, 2), (-2, 0)):
        codes = torch.cartesian_prod(*[torch.tensor([low, high])] * 6)
        assert largest_sums(weight, low, high).tolist() == (codes @ weight.flatten(1).T).abs().amax(0).tolist()
    check_sum("layer", INT32_MAX)
    with pytest.raises(ValueError, match=r"^layer: .* 2,147,483,648, .* 2,147,483,647, an int32.*skip="):
        check_sum("layer", INT32_MAX + 1)


def wide(code: int, inputs: int, largest: int = 255) -> Weighted:
    """One output, its weights all `code`; each input code up to `largest`."""
    source = Input("x", (), Grid(0.1, 0, largest), (1, inputs))
    numbers = torch.tensor([1e-4], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return Weighted("wide", (source,), Grid(1000.0, 0, 255), (1, 1), torch.full((1, inputs), code).short(), *numbers)


@NEEDS_ONNXRUNTIME
def test_sums_fit_an_int32_or_are_refused_by_name():
    """Codes are multiplied up no farther than their sums allow; once they were, the engine's sums overflowed."""
    op = wide(3, 270_000)
    made = op.integers
    assert 3 < int(made.weight.max()) < 63 and made.bound <= INT32_MAX
    x = torch.full((1, 270_000), 255, dtype=torch.int32)
    expected = Twin(Program([*op.inputs, op], op)).step(op, [x])
    (got,) = session(op_graph(op)).run(None, {"in0": stored(x, op.inputs[0].grid)})
    assert got.item() == expected.item() == 2
    at_most = INT32_MAX // (255 * 127)
    assert int(wide(127, at_most).integers.weight.max()) == 127
    with pytest.raises(ValueError, match=r"^wide: .* int32"):
        wide(127, at_most + 1).integers  # noqa: B018
    assert int(wide(127, at_most + 1, 127).integers.weight.max()) == 127
    with pytest.raises(ValueError, match=r"^wide: .* int32"):
        replace(wide(127, at_most), offset=torch.tensor([10.0], dtype=torch.float64)).integers  # noqa: B018
