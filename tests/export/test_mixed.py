"""ONNX with float islands: layers and products on integers, equal to fake quantization but for ties; what is listed."""

import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.cli import main
from spequant.export import export_mixed, lower, mixed_graph, read_onnx
from spequant.export.engines import onnxruntime, run_in_parts
from spequant.export.mixed import answers, other_last_bits
from spequant.export.onnx_export import as_batches
from spequant.export.parity import Codes, Parity
from spequant.quantizers import LSQ, PACT, SAWB, LSQPlus, MinMax
from spequant.quantizers.ranges import largest
from spequant.recipes import evaluate_source
from support.attention import NETWORKS
from support.covered_networks import NAMES, shaken, side
from support.image_folders import fill
from support.processor import clips

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ENDS = 7 if clips() else 8


def prepared(network, x, **options):
    torch.manual_seed(0)
    given = {"weight": SAWB(4), "act": PACT(4), "residual": None} | options
    if "ends" not in options:
        given["overrides"] = {"*": (given["weight"], given["act"])}
    model = spequant.prepare(network, **given)
    spequant.calibrate(model, [x], samples=len(x), rule=largest, reestimate=False)
    return model.eval()


def exported(model, x):
    """(its graph, what torch gives, what onnxruntime gives)."""
    mixed = mixed_graph(model, x[:1])
    (got,) = onnxruntime(mixed.graph.SerializeToString())({"input": x.numpy()})
    with torch.no_grad():
        return mixed, model(x), torch.from_numpy(got)


def kinds(mixed) -> Counter:
    return Counter(node.op_type for node in mixed.graph.graph.node)


class Each(nn.Module):
    """A tensor through one layer, and flat."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).flatten(1)


LAYERS = {
    "tokens": (nn.Linear(6, 5), (5, 7, 6)),
    "no bias": (nn.Linear(6, 5, bias=False), (5, 6)),
    "1d": (nn.Conv1d(4, 6, 3, padding=1, stride=2), (5, 4, 9)),
    "2d": (nn.Conv2d(4, 6, (3, 5), padding=(0, 2), dilation=(2, 1), groups=2), (5, 4, 9, 8)),
    "same": (nn.Conv2d(4, 6, 3, padding="same", bias=False), (5, 4, 9, 8)),
    "3d": (nn.Conv3d(2, 3, 3, padding=1), (5, 2, 5, 4, 6)),
}
QUANTIZERS = {
    "signed W4A4": (SAWB(4), PACT(4)),
    "odd codes": (SAWB(2), PACT(2)),
    "zero point": (LSQ(4), LSQPlus(4)),
    "by channel": (LSQ(8), LSQ(8)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(("weight", "act"), QUANTIZERS.values(), ids=QUANTIZERS)
def test_a_layer_computes_on_codes_what_it_did_on_their_values(layer, shape, weight, act):
    torch.manual_seed(1)
    x = F.silu(2 * torch.randn(shape))
    model = prepared(Each(layer), x, weight=weight, act=act, per_channel=weight.bits == 8)
    mixed, expected, got = exported(model, x)
    if mixed.saturating and clips():
        pytest.skip("this processor clips sums of 8-bit weights to 16 bits")
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    linear = isinstance(layer, nn.Linear)
    assert mixed.integers == (["layer"] if linear else []) and mixed.batch is None
    assert [i.startswith("layer.layer: conv") for i in mixed.islands] == ([] if linear else [True])
    assert (
        kinds(mixed)["MatMulInteger" if linear else "Conv"]
        == kinds(mixed)["QuantizeLinear" if linear else "Round"]
        == 1
    )
    assert not {"MatMul", "Gemm", "DequantizeLinear"} & set(kinds(mixed))


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
    mixed, expected, got = exported(prepared(Rest(), x, skip=["kept"], ends=ENDS), x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert mixed.integers == ["head"]
    assert [i for i in mixed.islands if "conv" in i or "linear" in i or "gelu" in i] == [
        "turned.layer: convolution",
        "mirrored.layer: conv2d",
        "kept: linear",
        "network: gelu",
    ]


class Encoded(nn.Module):
    """A user's network: torch's encoder on patches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, activation="gelu", batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


SLOW = ("torchvision Swin V2", "BEiT", "EVA", "timm Swin V2", "timm Swin")
WHOLE = {"encoder": Encoded, **NETWORKS}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in WHOLE])
def test_whole_networks(name, tmp_path):
    torch.manual_seed(0)
    network, x = WHOLE[name]().eval(), torch.randn(64, 3, 32, 32)
    with pytest.raises(ValueError, match=r"form|cannot be traced|dimensions"):
        lower(prepared(network, x[:8]), x[:1])
    products = 8 if name in ("encoder", "ViT", "torchvision Swin", "timm Swin") else None
    model = prepared(network, x[:8], weight=LSQ(4), act=LSQ(8), products=products, residual=8, ends=ENDS)
    parity, mixed = export_mixed(model, tmp_path / "net.onnx", [x], about={"name": name})
    assert parity.images == 64 and parity.equal >= 62
    quantized = [n for n, m in model.named_modules() if isinstance(m, spequant.layers.QuantizedLayer)]
    linear = {n for n in quantized if isinstance(model.get_submodule(n).layer, nn.Linear)}
    assert linear <= set(mixed.integers) and kinds(mixed)["MatMulInteger"] == len(mixed.integers)
    assert (len(mixed.integers) > len(linear)) == (products is not None)
    assert any("layer_norm" in i for i in mixed.islands) and not any(
        "linear" in i and "cpb_mlp" not in i for i in mixed.islands
    )
    assert b"site-packages" not in (tmp_path / "net.onnx").read_bytes()
    _, head = read_onnx(tmp_path / "net.onnx")
    assert (head["kind"], head["islands"], head["about"]) == ("mixed", mixed.islands, {"name": name})


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


@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_heads(masked):
    class OneHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)
            self.register_buffer("mask", torch.ones(1, 6, 6).tril().bool())

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, v, self.mask if masked else None).mean(1))

    x = torch.randn(5, 6, 8)
    mixed, expected, got = exported(prepared(OneHead(), x), x)
    assert mixed.integers == ["qkv", "head"]
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
    with pytest.raises(ValueError, match="images is a Tensor; expected an iterable of batches"):
        export_mixed(model, tmp_path / "b.onnx", x)
    with pytest.raises(ValueError, match="leave labels out"):
        export_mixed(model, tmp_path / "b.onnx", [{"x": x, "labels": torch.zeros(40, dtype=torch.int64)}])
    assert not (tmp_path / "b.onnx").exists()


def test_attention_of_five_dimensions():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(3, 0, 1, 4, 2, 5)
            return self.head(F.scaled_dot_product_attention(q, k, v, None, 0.0).transpose(2, 3).flatten(3).mean((1, 2)))

    x = torch.randn(5, 4, 6, 8)
    before = F.scaled_dot_product_attention
    mixed, expected, got = exported(prepared(Windows(), x), x)
    assert F.scaled_dot_product_attention is before and mixed.integers == ["qkv", "head"]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_counts_with_the_batch_takes_images_singly():
    class Counting(Each):
        def forward(self, x):
            return torch.cat([self.layer(one[None]) for one in x])

    x = torch.randn(5, 6)
    model = prepared(Counting(nn.Linear(6, 4)), x)
    mixed = mixed_graph(model, x[:1])
    assert mixed.batch == 1
    parity = answers(model, mixed, onnxruntime(mixed.graph.SerializeToString()), as_batches([x]))
    assert parity.images == parity.equal == 5


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


class Residual(nn.Module):
    """An addition that is not marked: the quantizers of its addends hang on the layers that make them."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.one(x)
        return self.head(x + self.two(x.relu()))


@pytest.mark.parametrize("bits", [3, 8])
def test_an_addends_grid_on_a_layer_is_in_the_graph(bits):
    x = torch.randn(256, 16)
    model = prepared(Residual(), x, weight=MinMax(8), act=MinMax(8), residual=bits)
    assert sum("output_quantizer" in m._modules for m in model.modules() if type(m) is spequant.layers.QuantizedLayer)
    _, expected, got = exported(model, x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(30, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.inner(self.table(tokens)).relu().mean(1))


@pytest.mark.parametrize("named", [False, True])
def test_tokens_stay_whole_numbers(named, tmp_path):
    tokens = torch.randint(0, 30, (64, 7))
    given = {"tokens": tokens} if named else tokens
    model = spequant.prepare(Tokens(), weight=SAWB(4), act=PACT(4))
    spequant.calibrate(model, [given], samples=64)
    parity, mixed = export_mixed(model.eval(), tmp_path / "net.onnx", [given])
    assert (parity.images, parity.agreement, mixed.outputs) == (64, 1, ("output",))
    assert mixed.inputs == (("tokens",) if named else ("input",))


def test_what_cannot_be_exported_is_said_and_no_file_is_left(tmp_path):
    class Two(Each):
        def forward(self, x):
            return self.layer(x), x

    class Deciding(Each):
        def forward(self, x):
            return self.layer(x) if float(x.sum()) > 0 else self.layer(-x)

    x, path = torch.randn(5, 6), tmp_path / "net.onnx"
    with pytest.raises(ValueError, match="images is empty"):
        export_mixed(prepared(Each(nn.Linear(6, 4)), x), path, [])
    with pytest.raises(ValueError, match="the network gives tuple; expected one tensor"):
        export_mixed(prepared(Two(nn.Linear(6, 4)), x), path, [x])
    with pytest.raises(ValueError, match=r"torch cannot export this network .*decides by the values of tensors"):
        export_mixed(prepared(Deciding(nn.Linear(6, 4)), x), path, [x])
    with pytest.raises(RuntimeError, match="calibrate"):
        export_mixed(spequant.prepare(Each(nn.Linear(6, 4)), weight=SAWB(4), act=PACT(4)), path, [x])
    with pytest.raises(ValueError, match=r"expected torch\.float32"):
        export_mixed(prepared(Each(nn.Linear(6, 4)), x).half(), path, [x])
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_answers_otherwise_leaves_no_file(tmp_path, monkeypatch):
    x = torch.randn(64, 6)
    model = prepared(Each(nn.Linear(6, 4)), x)

    def wrong(path):
        return lambda feed: [-model(torch.from_numpy(feed["input"])).detach().numpy()]

    monkeypatch.setattr("spequant.export.engines.onnxruntime", wrong)
    with pytest.raises(ValueError, match="onnxruntime gives another arg-max than the network on"):
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


def test_8_bit_sums_that_some_processors_clip_are_named(monkeypatch):
    x = torch.randn(5, 6)
    assert mixed_graph(prepared(Each(nn.Linear(6, 4)), x, weight=MinMax(8), act=PACT(8)), x).saturating == ["layer"]
    assert mixed_graph(prepared(Each(nn.Linear(6, 4)), x, weight=MinMax(4), act=PACT(8)), x).saturating == []
    wrong = Parity(codes=[Codes("conv1 [0, 255]", forced=3)], saturating=["conv1", "a", "b", "c"])
    for found, told in [("avx2", True), ("avx2 avx512_vnni", False), ("asimd asimddp", False), ("", False)]:
        monkeypatch.setattr("spequant.export.engines.instruction_sets", found.split)
        with pytest.raises(ValueError, match=r"other codes than the integer twin in conv1 \[0, 255\] \(3\)") as error:
            wrong.check("onnxruntime")
        assert ("clips sums of 8-bit products to 16 bits, as in conv1, a, b and 1 more" in str(error.value)) == told


def test_a_run_of_a_transformer(tmp_path, capsys):
    fill(tmp_path / "data", train=8, test=8)
    settings = {
        "--network.name": "timm/test_vit",
        "--data.root": str(tmp_path / "data"),
        "--data.size": "32",
        "--train.epochs": "1",
        "--train.batch-size": "8",
        "--quant.product-bits": "8",
        "--quant.act-bits": "8",
        "--method.name": "retrain",
        "--out": str(tmp_path / "run"),
    }
    words = [word for pair in settings.items() for word in pair]
    main(["train", "transfer-resnet20-w4a4-speq", *words, "--network.no-new-head", "--train.no-compile"])
    with pytest.raises(SystemExit, match="`--to mixed` writes ONNX whose linear layers compute on integers"):
        main(["export", str(tmp_path / "run"), "--to", "onnx"])
    capsys.readouterr()
    main(["export", str(tmp_path / "run"), "--to", "mixed", "--preprocessing"])
    printed = capsys.readouterr().out
    assert "in float: " in printed and "softmax in blocks.0.attn, blocks.1.attn" in printed
    path = tmp_path / "run" / "model.mixed.onnx"
    expected = json.loads((tmp_path / "run" / "result.json").read_text())["test_accuracy"]
    (row,) = evaluate_source(path, root=tmp_path / "data")
    assert row["engine"] == "onnxruntime" and row["accuracy"] == pytest.approx(expected, abs=2 * 100 / 24)
    with pytest.raises(ValueError, match="is a file of --to mixed and runs in onnxruntime alone"):
        evaluate_source(path, engine="torch", root=tmp_path / "data")
    with pytest.raises(ValueError, match="is a file of --to mixed and runs at one activation width"):
        evaluate_source(path, act_bits=[4], root=tmp_path / "data")


INTEGER = """
torchvision/mnasnet0_5 torchvision/mobilenet_v2 torchvision/regnet_y_400mf torchvision/resnet18 timm/dla46x_c
timm/convmixer_768_32 timm/regnetx_002 timm/resnetv2_18 timm/selecsls42 timm/legacy_xception timm/xception41p
""".split()  # noqa: SIM905


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_the_table_of_coverage_is_exported(name):
    """Ties of networks that were never trained grow from layer to layer, so that answers are not compared."""
    x = torch.randn(2, 3, side(name), side(name))
    model = spequant.prepare(shaken(name), weight=SAWB(4), act=PACT(4), ends=ENDS)
    spequant.calibrate(model, [x], samples=2, reestimate=False)
    try:
        lower(model.eval(), x[:1])
        assert name in INTEGER
    except ValueError:
        assert name not in INTEGER
    mixed = mixed_graph(model, x[:1])
    (out,) = run_in_parts(onnxruntime(mixed.graph.SerializeToString()), {"input": x.numpy()}, mixed.batch)
    assert out.shape == (2, 10) and mixed.islands
    linear = [
        m for m in model.modules() if isinstance(m, spequant.layers.QuantizedLayer) and type(m.layer) is nn.Linear
    ]
    assert len(mixed.integers) >= len(linear)
