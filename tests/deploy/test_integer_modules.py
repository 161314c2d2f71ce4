"""Layers, embeddings and addends on codes: what the graph computes is what fake quantization does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.deploy import export_mixed
from spequant.deploy.integer_modules import IntegerLayer
from spequant.quantizers import LSQ, PACT, SAWB, LSQPlus, MinMax
from support.clipping import clips
from support.integer_networks import NEEDS_ONNXRUNTIME
from support.mixed_networks import NEEDS_ONNXSCRIPT, exported, kinds, prepared

pytestmark = [NEEDS_ONNXRUNTIME, NEEDS_ONNXSCRIPT]
LAYERS = {
    "tokens": (lambda: nn.Linear(6, 5), (7, 6)),
    "no bias": (lambda: nn.Linear(6, 5, bias=False), (6,)),
    "1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, stride=2), (4, 9)),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 5), padding=(0, 2), dilation=(2, 1), groups=2), (4, 9, 8)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False), (4, 9, 8)),
    "3d": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 5, 4, 6)),
}
QUANTIZERS = {
    "signed W4A4": (SAWB(4), PACT(4)),
    "odd codes": (SAWB(2), PACT(2)),
    "zero point": (LSQ(4), LSQPlus(4)),
    "by channel": (LSQ(8), LSQ(8)),
}


SINGLE = ("no bias", "2d")
BY_CHANNEL = "by channel"
"""of the quantizers the one that is prepared with per_channel=True, on its own"""
REST = [q for q in QUANTIZERS if q != BY_CHANNEL]
FIRST = REST[0]


class SideBySide(nn.Module):
    """Each of `cases`, (layer, quantizers), on its own part of the input; what they give, flat, beside each other."""

    def __init__(self, cases):
        super().__init__()
        self.shapes = [LAYERS[name][1] for name, _ in cases]
        self.layers = nn.ModuleDict({f"{name} {of}": LAYERS[name][0]() for name, of in cases})
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]

    def forward(self, x):
        parts = zip(self.layers.values(), self.shapes, x.split(self.sizes, 1), strict=True)
        return torch.cat([layer(part.unflatten(1, shape)).flatten(1) for layer, shape, part in parts], 1)


def is_linear(name):
    return isinstance(LAYERS[name][0](), nn.Linear)


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([*((n, FIRST) for n in LAYERS), *((n, q) for q in REST[1:] for n in SINGLE)], id="all, by tensor"),
        pytest.param([(n, BY_CHANNEL) for n in SINGLE], id=BY_CHANNEL),
        *(pytest.param([(n, q) for n in LAYERS], id=f"all, {q}", marks=pytest.mark.slow) for q in QUANTIZERS),
    ],
)
def test_a_layer_computes_on_codes_what_it_did_on_their_values(cases):
    torch.manual_seed(1)
    if clips():  # this processor clips sums of 8-bit weights to 16 bits
        cases = [(n, q) for n, q in cases if not (is_linear(n) and q == BY_CHANNEL)]
    network = SideBySide(cases)
    x = F.silu(2 * torch.randn(5, sum(network.sizes)))
    by_layer = {f"layers.{n} {q}": QUANTIZERS[q] for n, q in cases}
    model = prepared(network, x, ends=8, overrides=by_layer, per_channel=any(q == BY_CHANNEL for _, q in cases))
    for name, (weight, act) in by_layer.items():
        layer = model.get_submodule(name)
        assert type(layer.weight_quantizer) is type(weight) and type(layer.act_quantizer) is type(act)
    mixed, expected, got = exported(model, x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    linear = [f"layers.{n} {q}" for n, q in cases if is_linear(n)]
    convolutions = [name for name in by_layer if name not in linear]
    assert mixed.integers == linear and mixed.batch is None
    assert [i.partition(": conv")[0] for i in mixed.islands] == [f"{name}.layer" for name in convolutions]
    found = kinds(mixed)
    assert found["MatMulInteger"] == found["QuantizeLinear"] == len(linear)
    assert found["Conv"] == found["Round"] == len(convolutions)
    assert not {"MatMul", "Gemm", "DequantizeLinear"} & set(found)


class Residual(nn.Module):
    """An addition that is not marked: the quantizers of its addends hang on the layers that make them."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.one(x)
        return self.head(x + self.two(x.relu()))


@pytest.mark.parametrize("bits", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_an_addends_grid_on_a_layer_is_in_the_graph(bits):
    x = torch.randn(256, 16)
    model = prepared(Residual(), x, weight=MinMax(8), act=MinMax(8), residual=bits)
    assert sum("output_quantizer" in m._modules for m in model.modules() if type(m) is spequant.layers.QuantizedLayer)
    mixed, expected, got = exported(model, x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert mixed.saturating == ["one", "two", "head"]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(30, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.inner(self.table(tokens)).relu().mean(1))


@pytest.mark.parametrize("named", [pytest.param(False, marks=pytest.mark.slow), True])
def test_tokens_stay_whole_numbers(named, tmp_path):
    tokens = torch.randint(0, 30, (64, 7))
    given = {"tokens": tokens} if named else tokens
    model = spequant.prepare(Tokens(), weight=SAWB(4), act=PACT(4))
    spequant.calibrate(model, [given], samples=64)
    parity, mixed = export_mixed(model.eval(), tmp_path / "net.onnx", [given])
    assert (parity.images, parity.agreement, mixed.outputs) == (64, 1, ("output",))
    assert mixed.inputs == (("tokens",) if named else ("input",))


@pytest.mark.parametrize(("bits", "saturates"), [(8, True), (4, False)])
def test_8_bit_sums_that_some_processors_clip_are_known(bits, saturates):
    x = torch.randn(5, 6)
    model = prepared(nn.Sequential(nn.Linear(6, 4)), x, weight=MinMax(bits), act=PACT(8))
    assert IntegerLayer(model[0], "0").saturates is saturates
