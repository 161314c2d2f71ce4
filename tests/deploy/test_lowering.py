"""From a prepared network to its program: which ops there are, on which grids, and what is refused."""

import inspect
import sys

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import (
    Twin,
    export_onnx,
    integer_graph,
    load_packed,
    lower,
    pack,
    quant_graph,
    quantize_biases,
    write_onnx,
)
from spequant.deploy.engines import ENGINES
from spequant.deploy.operations import Function, Weighted
from spequant.layers import QuantizedLayer
from spequant.quantizers import LSQ, PACT, SAWB, percentile
from support.integer_networks import NEEDS_ONNXRUNTIME, Shared, prepared, small


def names(program) -> list[str]:
    return [op.name for op in program.ops if isinstance(op, Weighted)]


def test_another_activation_width_is_lowered_within_its_context():
    x = torch.randn(32, 1, 8, 8)
    model = prepared(small(), x)
    with spequant.precision(model, spequant.Fixed({"layer*conv*": 4})):
        program, logits = lower(model, x[:1]), model(x)
    assert {op.grid.high for op in program.ops if op.grid and ".conv" in op.name and not op.grid.signed} == {15}
    assert (Twin(program)(x).argmax(1) == logits.argmax(1)).float().mean() >= 31 / 32


def test_a_layer_may_be_called_twice():
    x = torch.randn(64, 1, 8, 8)
    model = prepared(Shared(), x)
    program = lower(model, x[:1])
    assert names(program) == ["first", "again", "again", "last"]
    torch.testing.assert_close(Twin(program)(x), model(x), rtol=1e-3, atol=1e-3)


def test_a_network_of_any_depth_is_lowered():
    """More layers than Python's limit of calls within calls."""
    layers = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(100)]
    x = torch.rand(2, 4, 2, 2)
    model = spequant.prepare(nn.Sequential(*layers), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [x], samples=2, rule=percentile(98.0))
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 90)
    try:
        program = lower(model.eval(), x)
    finally:
        sys.setrecursionlimit(before)
    assert len(names(program)) == 100


def test_what_the_output_does_not_depend_on_is_not_lowered():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            self.b(x)
            return self.c(self.a(x).relu())

    x = torch.randn(2, 3, 4, 4)
    assert names(lower(prepared(Unread(), x), x)) == ["a", "c"]


def test_a_batch_norm_that_does_more_is_not_taken_for_a_plain_one():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    x = torch.randn(2, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    model = spequant.prepare(network, weight=SAWB(4), act=PACT(4), residual=None)
    spequant.calibrate(model, [x], samples=2)
    with pytest.raises(ValueError, match=r"batch_norm|cannot be traced"):
        lower(model.eval(), x[:1])


def test_a_network_that_is_not_calibrated_or_not_fp32_is_refused():
    x = torch.rand(64, 3, 4, 4)
    model = spequant.prepare(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)), weight=SAWB(2), act=PACT(2))
    assert isinstance(model[0], QuantizedLayer)
    with pytest.raises(RuntimeError, match="no range yet"):
        lower(model, x[:1])
    spequant.calibrate(model, [x], samples=64)
    with pytest.raises(ValueError, match=r"0\.layer\.weight is torch\.float16; expected torch\.float32"):
        lower(model.half(), x[:1])


class Sides(nn.Module):
    """A quantized layer beside a float one; which of them the answer is made of."""

    def __init__(self, read):
        super().__init__()
        self.quantized, self.plain, self.read = nn.Linear(6, 3), nn.Linear(6, 3), read

    def forward(self, x):
        return {"quantized": self.quantized(x), "plain": self.plain(x)}[self.read]


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (lambda: Sides("plain"), None, "^Sides is a float "),
        (lambda: Sides("plain"), {"skip": ["plain"]}, "^Sides .* 1 of its"),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), {"act": None}, "^Sequential .* 2 of its .*act="),
    ],
)
def test_a_network_that_computes_nothing_on_integers_is_no_integer_program(network, options, message, tmp_path):
    model, x = network().eval(), torch.randn(64, 6)
    if options is not None:
        model = spequant.prepare(model, **{"weight": SAWB(4), "act": PACT(4), **options})
        spequant.calibrate(model, [x], samples=64)
    for way in (lower, quantize_biases, lambda model, x: export_onnx(model, tmp_path / "net.onnx", [x])):
        with pytest.raises(ValueError, match=message):
            way(model, x)
    assert not list(tmp_path.iterdir())


def test_one_layer_on_integers_is_enough():
    x = torch.randn(64, 6)
    model = spequant.prepare(Sides("quantized"), weight=SAWB(4), act=PACT(4), skip=["plain"])
    spequant.calibrate(model, [x], samples=64)
    assert names(lower(model, x)) == ["quantized"]


@NEEDS_ONNXRUNTIME
def test_on_powers_of_two_without_batch_norm_every_factor_is_a_shift_and_all_formats_give_torchs_numbers(tmp_path):
    pytest.importorskip("qonnx")
    block = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU()]
    network, x = nn.Sequential(*block, nn.Flatten(), nn.Linear(16, 3)), torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        block[3].weight *= torch.logspace(-1, 1, 4).view(4, 1, 1, 1)
    lsq = LSQ(4, power_of_two=True)
    model = prepared(network, x, weight=lsq, act=lsq, per_channel=True)
    program = lower(model, x[:1])
    for layer in program.weighted:
        (source,) = layer.inputs
        factor = source.grid.step * layer.scale / (1.0 if layer.grid is None else layer.grid.step)
        assert torch.equal(factor.log2().round().exp2(), factor)
    assert len(program.weighted[1].scale.unique()) > 1 and torch.equal(Twin(program)(x), model(x))
    for name, graph in {"onnxruntime": integer_graph(program), "qonnx": quant_graph(program)}.items():
        write_onnx(graph, tmp_path / f"{name}.onnx")
        (got,) = ENGINES[name](tmp_path / f"{name}.onnx")({"input": x.numpy()})
        assert torch.equal(torch.from_numpy(got), model(x)), name
    pack(model, tmp_path / "net.packed")
    assert torch.equal(load_packed(tmp_path / "net.packed", network)(x), model(x))


def test_shapes_are_those_of_one_sample_in_functions_too():
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.SiLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(32, 3))
    x = torch.randn(8, 2, 4, 4)
    model = spequant.prepare(network, weight=SAWB(4), act=PACT(4), between=8)
    spequant.calibrate(model, [x], samples=8)
    ops = lower(model.eval(), x).ops
    parts = [part for op in ops if isinstance(op, Function) for part in op.parts]
    assert parts and all(op.shape[0] == 1 for op in [*ops, *parts])
