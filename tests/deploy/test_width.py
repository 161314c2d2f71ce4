"""A program at another activation width: the network's own at that width."""

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import Twin, at_width, integer_graph, lower, read_program, write_onnx
from spequant.deploy.engines import ENGINES
from spequant.deploy.operations import Weighted
from spequant.policies import LowBit
from spequant.quantizers import PACT, SAWB
from support.clipping import skip_if_clipped
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered, prepared, small

SLOW = pytest.mark.slow


@pytest.fixture
def x():
    return torch.randn(32, 1, 8, 8)


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize(
    ("bits", "power_of_two"),
    [
        (1, False),
        (8, True),
        *(pytest.param(*more, marks=SLOW) for more in ((3, False), (4, False), (8, False), (1, True))),
    ],
)
def test_a_file_at_another_width_is_the_network_at_that_width(x, bits, power_of_two, tmp_path):
    model = prepared(small(), x, act=PACT(2, power_of_two=power_of_two))
    write_onnx(integer_graph(lower(model, x[:1])), tmp_path / "net.onnx")
    changed = at_width(read_program(tmp_path / "net.onnx")[0], bits)
    with spequant.precision(model, LowBit(bits)):
        program, logits = lower(model, x[:1]), model(x)
    assert [op.grid for op in changed.ops] == [op.grid for op in program.ops]
    # A step of 8 bits is so fine that biases are off it, torch's own answers differ by as much.
    # Where a step becomes four times as large, biases lie half-way between two of its units.
    near = bits == 8 or (bits == 1 and power_of_two)
    torch.testing.assert_close(Twin(changed)(x), Twin(program)(x), rtol=0, atol=0.1 if near else 1e-5)
    if bits > 1:  # where the grid gets coarser, biases are off it, and torch's answers are others
        assert (Twin(changed)(x).argmax(1) == logits.argmax(1)).float().mean() >= 0.98
    skip_if_clipped(changed)
    (got,) = ENGINES["onnxruntime"](integer_graph(changed).SerializeToString(), 1)({"input": x.numpy()})
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


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize("top", [0.2, 0.05])
def test_clamps_stay_where_they_are_at_another_width(x, top, tmp_path):
    model = prepared(Clamped(top), x)
    write_onnx(integer_graph(lower(model, x[:1])), tmp_path / "net.onnx")
    read = read_program(tmp_path / "net.onnx")[0]
    for bits in (3, 4, 8):
        with spequant.precision(model, LowBit(bits)):
            expected = lower(model, x[:1])
        assert [op.grid for op in at_width(read, bits).ops] == [op.grid for op in expected.ops]
        (end,) = [op.grid.high for op in expected.ops if op.name == "b"]
        assert end < 2**bits - 1


def test_what_was_trained_at_the_recipes_bits_changes(x):
    """Not what has the fewest: 7-bit ends of an 8-bit network stay."""
    model = prepared(small(), x, SAWB(8), PACT(8), ends=7)
    program = at_width(lower(model, x[:1]), 4, 8)
    with spequant.precision(model, LowBit(4, 8)):
        assert [op.grid for op in program.ops] == [op.grid for op in lower(model, x[:1]).ops]
    highs = {op.name: op.inputs[0].grid.high for op in program.ops if isinstance(op, Weighted)}
    assert highs["conv1"] == 63 and highs["linear"] == 127 and highs["layer1.0.conv1"] == 15
    with pytest.raises(ValueError, match=r"trained is 5; .* \[7, 8\] bits"):
        at_width(program, 4, 5)
    with (
        pytest.raises(ValueError, match=r"trained is 5; .* \[7, 8\] bits"),
        spequant.precision(model, LowBit(4, 5)),
    ):
        pass


def test_a_width_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"bits is 9; .* 1 to 8"):
        at_width(lowered("two bits").program, 9)
