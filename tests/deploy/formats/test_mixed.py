"""ONNX with float islands: what is on integers, what is listed, inputs and outputs of every form, what is refused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.deploy import export_mixed, mixed_graph
from spequant.deploy.engines import ENGINES, onnxruntime
from spequant.deploy.formats.mixed import answers
from spequant.deploy.inputs import as_batches
from spequant.deploy.last_bits import other_last_bits
from spequant.deploy.torch_graph import float_graph
from spequant.preparation.adapters.products import Product
from spequant.quantizers import LSQ, PACT, SAWB
from support.clipping import clips
from support.integer_networks import NEEDS_ONNXRUNTIME
from support.mixed_networks import NEEDS_ONNXSCRIPT, exported, prepared

pytestmark = [NEEDS_ONNXRUNTIME, NEEDS_ONNXSCRIPT]


class Each(nn.Module):
    """A tensor through one layer, and flat."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).flatten(1)


def test_layers_without_an_integer_form_are_listed_and_answer_as_they_did():
    class Rest(nn.Module):
        def __init__(self):
            super().__init__()
            self.turned = nn.ConvTranspose2d(3, 4, 2, stride=2)
            self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
            self.kept, self.head = nn.Linear(4, 6), nn.Linear(6, 5)

        def forward(self, x):
            x = F.gelu(self.kept(self.mirrored(self.turned(x).relu()).mean((2, 3))))
            return self.head(x[:, : self.head.in_features])

    x = torch.randn(6, 3, 5, 5)
    mixed, expected, got = exported(prepared(Rest(), x, skip=["kept"], ends=7 if clips() else 8), x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert mixed.integers == ["head"]
    assert [i for i in mixed.islands if "conv" in i or "linear" in i or "gelu" in i] == [
        "turned.layer: convolution",
        "mirrored.layer: conv2d",
        "kept: linear",
        "network: gelu",
    ]


@pytest.mark.slow
def test_no_engine_quantizes_the_weights_of_float_convolutions_once_more():
    """As onnxruntime did where a convolution stood between two quantizers: one range for weights of many sizes."""
    convolutions = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]
    x = torch.randn(16, 8, 6, 6)
    network = nn.Sequential(*convolutions, nn.GELU(), nn.Flatten(), nn.Linear(288, 4))
    with torch.no_grad():
        for layer in convolutions:
            layer.weight *= torch.logspace(-2, 0, 8).reshape(-1, 1, 1, 1)
    _, expected, got = exported(prepared(network, x, weight=LSQ(4), act=LSQ(4), per_channel=True), x)
    assert float((got - expected).abs().median()) < 1e-5 * float(expected.abs().median())


@pytest.mark.slow
def test_attention_of_three_and_of_five_dimensions():
    """The one without heads, masked or not; the other of windows."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)
            self.register_buffer("mask", torch.ones(1, 6, 6).tril().bool())

        def forward(self, x):
            qkv = self.qkv(x)
            q, k, v = qkv.unflatten(-1, (3, 2, 4)).permute(3, 0, 1, 4, 2, 5)
            windows = F.scaled_dot_product_attention(q, k, v, None, 0.0).transpose(2, 3).flatten(3).mean((1, 2))
            q, k, v = qkv[:, 0].chunk(3, -1)
            single = [F.scaled_dot_product_attention(q, k, v, mask).mean(1) for mask in (None, self.mask)]
            return self.head(torch.stack([windows, *single], 1)).flatten(1)

    x = torch.randn(5, 4, 6, 8)
    before = F.scaled_dot_product_attention
    mixed, expected, got = exported(prepared(Windows(), x), x)
    assert F.scaled_dot_product_attention is before and mixed.integers == ["qkv", "head"]
    assert not torch.equal(expected[:, 3:6], expected[:, 6:])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_returns_a_dict_and_one_that_returns_a_loss(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, x, labels=None):
            logits = self.head(x)
            return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    x = torch.randn(40, 8)
    model = prepared(Named(), x)
    parity, mixed = export_mixed(model, tmp_path / "a.onnx", [x])
    assert (parity.images, mixed.outputs) == (40, ("logits",)) and parity.agreement > 0.9
    assert [v.output for v in parity.values] == ["logits"] and parity.values[0].apart < 1e-3
    with pytest.raises(ValueError, match="images is a Tensor"):
        export_mixed(model, tmp_path / "b.onnx", x)
    with pytest.raises(ValueError, match=r"'loss' .* labels"):  # as `export_mixed` calls it, once there is a graph
        given = as_batches([{"x": x, "labels": torch.zeros(40, dtype=torch.int64)}])
        answers(model, replace(mixed, outputs=("loss", "logits")), lambda feed: [], given)
    assert not (tmp_path / "b.onnx").exists()


def test_a_network_that_counts_with_the_batch_takes_images_singly():
    class Counting(Each):
        def forward(self, x):
            return torch.cat([self.layer(one[None]) for one in x])

    x = torch.randn(5, 6)
    model = prepared(Counting(nn.Linear(6, 4)), x)
    mixed = mixed_graph(model, x[:1])
    assert mixed.batch == 1
    run = onnxruntime(mixed.graph.SerializeToString(), 1)
    parity = answers(model, mixed, run, as_batches([x]))
    assert parity.images == parity.equal == 5
    wrong = answers(model, mixed, lambda feed: [-out for out in run(feed)], as_batches([x]))
    with pytest.raises(ValueError, match=r"an engine .* of 5 images"):
        wrong.check("an engine")


def test_pixels_in_the_graph(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 5))
    images, labels = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 5, (64,))
    norm = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    x = next(iter(as_batches([images], norm)))[0]
    model = prepared(network, x, act=LSQ(4))
    parity, mixed = export_mixed(model, tmp_path / "net.onnx", [(images, labels)], preprocessing=norm)
    assert parity.labelled == 64 and parity.equal >= 63
    assert mixed.graph.graph.input[0].type.tensor_type.elem_type == 2  # uint8
    assert "1: gelu" in mixed.islands


def test_what_cannot_be_exported_is_said_and_no_file_is_left(tmp_path):
    class Two(Each):
        def forward(self, x):
            return self.layer(x), 3

    class Deciding(Each):
        def forward(self, x):
            return self.layer(x) if float(x.sum()) > 0 else self.layer(-x)

    x, path = torch.randn(5, 6), tmp_path / "net.onnx"
    with pytest.raises(ValueError, match="images hold no sample"):
        export_mixed(prepared(Each(nn.Linear(6, 4)), x), path, [])
    with pytest.raises(ValueError, match="network gives int"):
        export_mixed(prepared(Two(nn.Linear(6, 4)), x), path, [x])
    with pytest.raises(ValueError, match=r"torch cannot export .* values of tensors"):
        export_mixed(prepared(Deciding(nn.Linear(6, 4)), x), path, [x])
    with pytest.raises(RuntimeError, match="calibrate"):
        export_mixed(spequant.prepare(Each(nn.Linear(6, 4)), weight=SAWB(4), act=PACT(4)), path, [x])
    with pytest.raises(ValueError, match=r"expected torch\.float32"):
        export_mixed(prepared(Each(nn.Linear(6, 4)), x).half(), path, [x])
    assert list(tmp_path.iterdir()) == []


class Sides(nn.Module):
    """A quantized layer beside a float one; which of them the answer is made of."""

    def __init__(self, read):
        super().__init__()
        self.quantized, self.plain, self.read = nn.Linear(6, 3), nn.Linear(6, 3), read

    def forward(self, x):
        return {"quantized": self.quantized(x), "plain": self.plain(x)}[self.read]


def test_a_network_that_computes_nothing_on_integers_is_no_mixed_one(tmp_path):
    x, path = torch.randn(64, 6), tmp_path / "net.onnx"
    with pytest.raises(ValueError, match=r"^Sides .*float network"):
        export_mixed(Sides("plain").eval(), path, [x])
    with pytest.raises(ValueError, match=r"^Sides .* 1 of its layers"):
        export_mixed(prepared(Sides("plain"), x, skip=["plain"]), path, [x])
    with pytest.raises(ValueError, match=r"^Sequential .* 2 of its layers.*act="):
        export_mixed(prepared(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)), x, act=None), path, [x])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # the quick tier has graphs enough, of the same code
def test_the_float_network_that_is_timed_beside_it():
    x, network = torch.randn(5, 6), Each(nn.Linear(6, 4))
    (got,) = onnxruntime(float_graph(network, {"x": x}).SerializeToString(), 1)({"x": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), network(x))


class Squares(nn.Module):
    """The sum of squares of all inputs, as a product of two activations."""

    def __init__(self):
        super().__init__()
        self.product, self.head = Product(), nn.Linear(1, 2)

    def forward(self, x):
        return self.head(self.product(x.unsqueeze(1), x.unsqueeze(2)).flatten(1))


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(270_000, 2), nn.Linear(2, 2)), 270_000, "^0: .* int32"),
        (Squares, 40_000, "^product: .* int32"),
    ],
)
def test_sums_that_an_int32_does_not_hold_are_refused_by_name(network, inputs, message):
    x, made = torch.rand(4, inputs), network()
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.abs_()
    options = {"products": 8} if network is Squares else {}
    model = prepared(made, x, weight=LSQ(8), act=PACT(8), **options)
    with pytest.raises(ValueError, match=message):
        mixed_graph(model, x[:1])


def test_writes_in_place_are_in_the_graph_and_images_stay_what_they_were(tmp_path):
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)

        def forward(self, x):
            x.clamp_(-1.0, 1.0)
            f = self.drop(self.a(x))
            alias, view = f, f[:, ::2]
            h = self.b(self.relu(f)) + f + x
            f += h
            view.mul_(h[:, ::2])
            torch.add(f, h, out=h)
            return self.c(alias + F.hardtanh_(h, -0.5, 0.5))

    images = torch.randn(64, 6)
    x = images.clone()
    model = prepared(Writing(), x.clone())
    parity, _ = export_mixed(model, tmp_path / "net.onnx", [x])
    assert torch.equal(x, images) and parity.values[0].apart < 1e-5
    (got,) = onnxruntime(tmp_path / "net.onnx", 1)({"input": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_engine_that_answers_otherwise_leaves_no_file(tmp_path, monkeypatch):
    x = torch.randn(64, 6)
    model = prepared(Each(nn.Linear(6, 4)), x)

    def wrong(path):
        return lambda feed: [-model(torch.from_numpy(feed["input"])).detach().numpy()]

    monkeypatch.setitem(ENGINES, "onnxruntime", wrong)
    with pytest.raises(ValueError, match=r"onnxruntime gives another arg-max .* of 64 images"):
        export_mixed(model, tmp_path / "net.onnx", [x])
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_other_last_bits_is_nearly_the_same_and_left_as_it_was():
    x = torch.randn(64, 6)
    network = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
    model = prepared(network, x, weight=LSQ(8), act=None)
    with torch.no_grad():
        before = model(x)
        with other_last_bits(model):
            once, twice = model(x), model(x)
        assert torch.equal(model(x), before) and not torch.equal(once, twice)
    difference = (once - before).abs().max() / before.abs().max()
    assert 0 < difference < 2e-6
