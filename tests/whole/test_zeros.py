"""What is exactly zero in a weight, on grids that have no level there: a tensor or channel of zeros and an embedding's
row of padding stay zero, in forward, training and every export; of pruned weights a warning tells."""

import warnings

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import Twin, integer_graph, load_packed, lower, pack, quant_graph, quantize_biases, write_onnx
from spequant.deploy.engines import ENGINES
from spequant.layers import weight_quantizers
from spequant.quantizers import (
    CSQ,
    LSQ,
    PACT,
    SAWB,
    APoT,
    DoReFa,
    LeastSquares,
    MinMax,
    Quantizer,
    StatsQ,
    least_squares,
    set_ewgs,
)
from spequant.train.freezing import OscillationFreezer
from support.integer_networks import NEEDS_ONNXRUNTIME
from support.mixed_networks import NEEDS_ONNXSCRIPT, exported

WITHOUT_ZERO = {
    "SAWB(1)": SAWB(1),
    "SAWB(2)": SAWB(2),
    "SAWB(2), clipped gradient": SAWB(2, clip_gradient=True),
    "SAWB(3)": SAWB(3),
    "SAWB(4)": SAWB(4),
    "CSQ(2)": CSQ(2),
    "CSQ(4)": CSQ(4),
    "StatsQ(2)": StatsQ(2),
    "DoReFa(2)": DoReFa(2),
    "DoReFa(4)": DoReFa(4),
    "LeastSquares(1)": LeastSquares(1),
    "LeastSquares(3), no zero": LeastSquares(3, zero=False),
    "LSQ(1)": LSQ(1),
}
WITH_ZERO = {
    "SAWB(8)": SAWB(8),
    "CSQ(5)": CSQ(5),
    "LeastSquares(2)": LeastSquares(2),
    "LSQ(2)": LSQ(2),
    "PACT(3)": PACT(3),
    "MinMax(4)": MinMax(4),
    "APoT(3)": APoT(3),
}
ALL = WITHOUT_ZERO | WITH_ZERO
QUICK = ("SAWB(2)", "CSQ(2)", "DoReFa(2)", "LSQ(1)", "LeastSquares(3), no zero", "APoT(3)")


def each(kinds, quick=QUICK):
    """Of every one of `kinds`, most in the slow tier."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in quick else slow) for k in kinds])


class Thirds(Quantizer):
    """A user's own, without zero: +-1 and +-1/3."""

    stored = False

    def level_count(self, bits=None):
        return 4

    def bounds(self, x):
        return -torch.ones(self.shape), torch.ones(self.shape)


def made(kind: Quantizer, w, per_channel: bool) -> Quantizer:
    q = kind.like(of_weight=True, signed=True, shape=(len(w), *[1] * (w.dim() - 1)) if per_channel else ())
    q.fit(w, least_squares)
    return q


@pytest.mark.parametrize("ewgs", [0.0, 0.2])
@pytest.mark.parametrize("kind", [*ALL, "a user's own"])
def test_zeros_stay_zero_and_have_a_gradient_of_their_size(kind, ewgs):
    """Of the whole tensor, of channels beside others that are not, of values that stand for nothing (-0)."""
    quantizer = Thirds(2) if kind == "a user's own" else ALL[kind]
    for w, per_channel in [
        (torch.zeros(4, 6), False),
        (torch.zeros(4, 6), True),
        (-torch.zeros(4, 3, 3, 3), False),
        (torch.cat([torch.zeros(2, 6), torch.randn(2, 6)]), True),
        (torch.cat([torch.zeros(2, 1, 3, 3), 1e-9 * torch.randn(2, 1, 3, 3)]), True),
    ]:
        leaf = w.clone().requires_grad_()
        q = made(quantizer, w, per_channel)
        if q.ewgs is not None:
            q.ewgs = ewgs
        y, grad = q(leaf), torch.randn_like(w)
        y.backward(grad)
        assert y[:2].eq(0).all() and y.isfinite().all()
        assert not w[2:].any() or not y[2:].eq(0).all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in q.parameters())
        moved = leaf.grad[:2]
        assert (moved != 0).any() and 0.1 < float(moved.norm() / grad[:2].norm()) < 1.5
        codes = q.encode(w)
        assert codes.min() >= 0 and codes.max() <= q.levels - 1


def learned(kind: Quantizer, last: nn.Module, x, labels) -> list[float]:
    """Losses over a training whose last layer starts at zero."""
    nn.init.zeros_(last.weight)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), last)
    model = spequant.prepare(network, weight=SAWB(8), act=LSQ(8), ends=8, overrides={"2": (kind, 8)})
    spequant.calibrate(model, [x], samples=len(x))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        out = model(x)
        assert losses or torch.equal(out, last.bias.detach().expand_as(out))
        loss = nn.functional.cross_entropy(out, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@each(ALL)
def test_a_layer_that_starts_at_zero_learns(kind):
    x = torch.randn(128, 6)
    losses = learned(ALL[kind], nn.Linear(16, 3), x, x[:, :3].argmax(1))
    assert losses[-1] < 0.75 * losses[0]


class Words(nn.Module):
    """A table with a row of padding, shared with the head where `tied`."""

    def __init__(self, tied=False, padding=3):
        super().__init__()
        self.table, self.inner = nn.Embedding(12, 8, padding_idx=padding), nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(torch.relu(self.inner(self.table(tokens).mean(1))))


TOKENS = torch.arange(64 * 5).reshape(64, 5) * 7 % 12


def words(kind: Quantizer, network=None, **options) -> nn.Module:
    model = spequant.prepare(
        network or Words(), weight=kind, act=LSQ(8), embeddings=kind, **({"ends": (kind, LSQ(8))} | options)
    )
    spequant.calibrate(model, [TOKENS], samples=64)
    return model


def padding_row(model):
    return model.table(torch.tensor([[3, 1]]))[0].detach()


def step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(TOKENS), TOKENS[:, 0]).backward()
    optimizer.step()


@pytest.mark.parametrize("options", [{}, {"per_channel": True}], ids=["one range", "by row"])
@each(ALL)
def test_a_row_of_padding_stays_zero_before_and_after_training(kind, options):
    model = words(ALL[kind], **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    for _ in range(10):
        zero, other = padding_row(model)
        assert zero.eq(0).all() and not other.eq(0).all()
        step(model, optimizer)
    assert model.table.layer.weight[3].eq(0).all() and padding_row(model)[0].eq(0).all()


@each(WITHOUT_ZERO, ("SAWB(2)", "DoReFa(2)"))
def test_so_it_does_where_the_head_has_the_same_weight_or_codes_are_frozen(kind):
    for model in (words(WITHOUT_ZERO[kind], Words(tied=True)), words(WITHOUT_ZERO[kind])):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        freezer = OscillationFreezer(model, threshold=0.05, momentum=0.04)
        for _ in range(10):
            step(model, optimizer)
            freezer.step()
        row = model.table.layer.weight[3]
        assert padding_row(model)[0].eq(0).all() == row.eq(0).all()
        assert row.eq(0).all() or model.head is not None


def test_padding_that_was_given_a_vector_is_quantized_like_any_other():
    network = Words()
    with torch.no_grad():
        network.table.weight[3] = 0.5
    assert not padding_row(words(SAWB(2), network))[0].eq(0).any()
    assert not padding_row(words(SAWB(2), Words(padding=None)))[0].eq(0).any()


@pytest.mark.parametrize("options", [{}, {"per_channel": True}], ids=["one range", "by row"])
@each(ALL)
def test_a_packed_file_holds_the_row_of_padding(kind, options, tmp_path):
    model = words(ALL[kind], **options).eval()
    pack(model, tmp_path / "a")
    loaded = load_packed(tmp_path / "a", Words())
    assert torch.equal(loaded(TOKENS), model(TOKENS)) and padding_row(loaded)[0].eq(0).all()
    pack(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@NEEDS_ONNXRUNTIME
@NEEDS_ONNXSCRIPT
@pytest.mark.parametrize("options", [{}, {"per_channel": True}], ids=["one range", "by row"])
@each(ALL, ("SAWB(2)",))
def test_so_does_a_file_with_float_islands(kind, options):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(12, 8, padding_idx=3)

        def forward(self, tokens):
            return self.table(tokens)

    model = spequant.prepare(Table(), weight=ALL[kind], act=None, embeddings=ALL[kind], **options)
    spequant.calibrate(model, [TOKENS], samples=64)
    mixed, expected, got = exported(model.eval(), TOKENS)
    torch.testing.assert_close(got, expected)
    assert got[TOKENS == 3].eq(0).all() and mixed.integers == ["table"]


def test_formats_without_embeddings_refuse_them_by_name():
    with pytest.raises(ValueError, match="table"):
        lower(words(SAWB(2)).eval(), TOKENS[:1])


def images(kind: Quantizer, per_channel: bool) -> tuple[nn.Module, torch.Tensor]:
    """A network with a convolution whose weight, or two of whose channels, are zero."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )
    with torch.no_grad():
        network[2].weight[: 2 if per_channel else 6] = 0
    x = torch.randn(8, 2, 8, 8)
    model = spequant.prepare(network, weight=kind, act=PACT(8), ends=7, per_channel=per_channel, residual=None)
    spequant.calibrate(model, [x], samples=8)
    quantize_biases(model, x[:1])
    return model.eval(), x


@pytest.mark.parametrize("per_channel", [False, True])
@each(ALL, QUICK[:3])
def test_zero_weights_are_zero_in_the_integer_program_and_the_packed_file(kind, per_channel, tmp_path):
    model, x = images(ALL[kind], per_channel)
    weight = model[2].weight_quantizer(model[2].layer.weight)
    assert weight[:2].eq(0).all() and weight[2:].eq(0).all() != per_channel
    torch.testing.assert_close(Twin(lower(model, x[:1]))(x), model(x), rtol=1e-5, atol=1e-5)
    pack(model, tmp_path / "a")
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )
    assert torch.equal(load_packed(tmp_path / "a", network)(x), model(x))


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "qonnx"])
@pytest.mark.parametrize(("kind", "per_channel"), [("SAWB(2)", True), ("SAWB(1)", False), ("CSQ(4)", True)])
def test_so_they_are_in_the_engines(kind, per_channel, engine, tmp_path):
    pytest.importorskip(engine)
    model, x = images(WITHOUT_ZERO[kind], per_channel)
    program = lower(model, x[:1])
    write_onnx(quant_graph(program) if engine == "qonnx" else integer_graph(program), tmp_path / "a.onnx")
    (got,) = ENGINES[engine](tmp_path / "a.onnx")({"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), rtol=1e-4, atol=1e-4)


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize("format", ["onnx", "tflite", "c"])
def test_a_branch_that_starts_at_zero_is_exported(format):
    """As a residual branch does whose last batch norm has the factor 0: all weights and biases are 0."""
    if format == "tflite":
        pytest.importorskip("ai_edge_litert")
    norm = nn.BatchNorm2d(4)
    nn.init.zeros_(norm.weight)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), norm, nn.ReLU())
    model = spequant.prepare(
        nn.Sequential(network, nn.Conv2d(4, 3, 4), nn.Flatten()), weight=SAWB(4), act=PACT(4), between=8
    )
    x = torch.randn(16, 2, 8, 8)
    spequant.calibrate(model, [x], samples=16)
    assert spequant.check_export(model.eval(), x[:1], format).ok


def pruned(share: float = 0.3) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        weight = network[2].weight.view(-1)
        weight[weight.abs().argsort()[: int(share * len(weight))]] = 0
    return network


@pytest.mark.parametrize("kind", WITHOUT_ZERO)
def test_pruned_weights_that_would_come_back_are_told_with_the_layer_and_the_choice(kind):
    with pytest.warns(UserWarning, match=r"2 \(30%, .*LeastSquares.*overrides=\{'2'") as told:
        spequant.prepare(pruned(), weight=WITHOUT_ZERO[kind], act=PACT(2), ends=8)
    assert [w.filename for w in told] == [__file__]


def quiet(network, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return spequant.prepare(network, **({"weight": SAWB(2), "act": PACT(2)} | options))


def test_nothing_is_told_where_nothing_is_lost():
    for kind in WITH_ZERO.values():
        model = quiet(pruned(), weight=kind)
        spequant.calibrate(model, [torch.randn(64, 8)], samples=64)
        quantized = model[2].weight_quantizer(model[2].layer.weight)
        if not isinstance(kind, APoT):  # which moves the mean to zero first
            assert quantized[model[2].layer.weight == 0].eq(0).all()
    quiet(pruned(), overrides={"2": (LeastSquares(2), 2)})
    quiet(pruned(), overrides={"2": 8})
    quiet(pruned(), weight=None)
    quiet(pruned(), skip=["2"])
    quiet(pruned(0.005))
    empty = pruned()
    nn.init.zeros_(empty[2].weight)
    quiet(empty)
    empty[2].weight.data[3:] = torch.randn(13, 16)
    quiet(empty, per_channel=True)
    with pytest.warns(UserWarning, match="2"):
        spequant.prepare(empty, weight=SAWB(2), act=PACT(2))
    quiet(Words(), embeddings=2)
    assert all(q.padding == (3 if n == "table" else None) for n, q in weight_quantizers(words(SAWB(2))).items())


def test_gradients_of_ewgs_reach_zeros_through_a_network():
    model = words(SAWB(2))
    set_ewgs(model, 0.1)
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert padding_row(model)[0].eq(0).all()
