"""Adapted modules compute the same, their layers are really quantized, and they can be restored."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
)

import spequant
from reference.attention import standardised
from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer, weight_quantizers
from spequant.preparation import adapters
from spequant.quantizers import LSQ, PACT
from support.attention import NETWORKS, Attending, gradients, quantized


def adapted(module, **options):
    module = copy.deepcopy(module)
    adapters.adapt(module, **options)
    return module


# --- torch's attention -------------------------------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "other widths": {"kdim": 6, "vdim": 10},
    "no bias": {"bias": False, "batch_first": True},
}
BATCH, HEADS, QUERIES, KEYS = 2, 2, 3, 5
MASKS = {
    "none": {},
    "bool": {"attn_mask": torch.eye(QUERIES, KEYS).bool()},
    "float": {"attn_mask": torch.linspace(-2, 2, QUERIES * KEYS).view(QUERIES, KEYS)},
    "bool per head": {"attn_mask": torch.arange(BATCH * HEADS * QUERIES * KEYS).view(-1, QUERIES, KEYS) % 4 == 1},
    "float per head": {"attn_mask": torch.linspace(-3, 3, BATCH * HEADS * QUERIES * KEYS).view(-1, QUERIES, KEYS)},
    "padding": {"key_padding_mask": torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()},
    "both": {
        "key_padding_mask": torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool(),
        "attn_mask": torch.eye(QUERIES, KEYS).bool(),
    },
    "both float": {
        "key_padding_mask": torch.tensor([[0.0, 0, 1, 0, -9], [0, 2, 0, 0, 1]]),
        "attn_mask": torch.linspace(-2, 2, QUERIES * KEYS).view(QUERIES, KEYS),
    },
}


def heads(name):
    """An attention with random biases, and its queries, keys and values."""
    layer = nn.MultiheadAttention(8, HEADS, **SETTINGS[name])
    for p in layer.parameters():
        nn.init.normal_(p)
    widths = (8, layer.kdim, layer.vdim)
    inputs = [torch.randn(BATCH, n, w) for n, w in zip((QUERIES, KEYS, KEYS), widths, strict=True)]
    return layer, inputs if layer.batch_first else [x.transpose(0, 1) for x in inputs]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", SETTINGS)
def test_attention_by_layers_equals_torchs(name, mask):
    layer, inputs = heads(name)
    other = adapted(layer)
    assert type(other) is not type(layer)
    for form in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        (a, p), (b, q) = (m(*inputs, **MASKS[mask], **form) for m in (layer, other))
        torch.testing.assert_close(b, a)
        assert (p is None) == (q is None) == ("need_weights" in form)
        if p is not None:
            torch.testing.assert_close(q, p)
    expected, theirs = gradients(layer, layer(*inputs)[0]), gradients(other, other(*inputs)[0])
    if "in_proj_weight" in expected:
        split = torch.cat([theirs[f"{n}.weight"] for n in "qkv"])
        torch.testing.assert_close(split, expected["in_proj_weight"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs["out_proj.weight"], expected["out_proj.weight"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_attention_without_a_batch_and_with_dropout(name):
    layer, inputs = heads(name)
    other = adapted(layer)
    one = [x[0] if layer.batch_first else x[:, 0] for x in inputs]
    padding = torch.tensor([0, 0, 0, 1, 1]).bool()
    for mask in ({}, {"key_padding_mask": padding}, {"attn_mask": MASKS["bool per head"]["attn_mask"][:HEADS]}):
        for a, b in zip(layer(*one, **mask), other(*one, **mask), strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(b, a)
    layer.dropout = other.dropout = 0.5
    for need in (True, False):
        seen = []
        for m in (layer, other):
            torch.manual_seed(1)
            seen.append(m(*inputs, need_weights=need)[0])
        torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(other.eval()(*inputs)[0], layer.eval()(*inputs)[0])
    with pytest.raises(ValueError, match="is_causal is True and attn_mask None"):
        other(*inputs, is_causal=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_attention_is_restored(name):
    layer, inputs = heads(name)
    layer.out_proj.weight.requires_grad_(False)
    for n in ("in_proj_weight", "k_proj_weight", "in_proj_bias"):
        if getattr(layer, n) is not None:
            getattr(layer, n).requires_grad_(False)
    back = adapted(layer)
    adapters.restore(back)
    assert type(back) is nn.MultiheadAttention and vars(back).keys() == vars(layer).keys()
    assert {n: p.requires_grad for n, p in back.named_parameters()} == {
        n: p.requires_grad for n, p in layer.named_parameters()
    }
    assert back.state_dict().keys() == layer.state_dict().keys()
    assert [n for n, _ in back.named_modules()] == [n for n, _ in layer.named_modules()]
    assert all(torch.equal(v, layer.state_dict()[n]) for n, v in back.state_dict().items())
    assert torch.equal(back(*inputs)[0], layer(*inputs)[0])


@pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_with_extra_keys_is_refused_by_name(settings):
    model = spequant.prepare(Attending(**settings), weight=LSQ(2), act=PACT(2))
    assert type(model.attention) is nn.MultiheadAttention
    with pytest.raises(AttributeError, match=r"attention\.out_proj is quantized.*skip=\['attention\.out_proj'\]"):
        spequant.calibrate(model, [torch.randn(8, 5, 8)], samples=8)
    spequant.calibrate(
        spequant.prepare(Attending(**settings), weight=LSQ(2), act=PACT(2), skip=["attention.*"]),
        [torch.randn(8, 5, 8)],
        samples=8,
    )


@pytest.mark.parametrize("batch_first", [True, False])
def test_each_projection_is_quantized_and_trained(batch_first):
    x = torch.randn(8, 5, 8)
    model = quantized(Attending(batch_first=batch_first), x)
    inner = model.attention
    assert inner.q.act_quantizer is inner.k.act_quantizer is inner.v.act_quantizer is not inner.out_proj.act_quantizer
    for layer in (inner.q, inner.k, inner.v, inner.out_proj):
        assert len(layer.weight_quantizer(layer.layer.weight).unique()) <= 4
    grads = gradients(model, model(x))
    # A bias of all keys moves all scores of a query alike, which softmax does not see.
    idle = [n for n, g in grads.items() if g is None or not g.any() or n == "attention.k.layer.bias"]
    assert idle == ["attention.k.layer.bias"]
    before = model(x)
    with torch.no_grad():
        inner.v.layer.weight.mul_(-1)
    assert not torch.equal(model(x), before)


def test_unprepare_restores_attention_with_trained_weights():
    x = torch.randn(8, 5, 8)
    model = quantized(Attending(), x)
    with torch.no_grad():
        model.attention.v.layer.weight.fill_(0.5)
    plain = spequant.unprepare(model)
    assert type(plain.attention) is nn.MultiheadAttention and (plain.attention.in_proj_weight[16:] == 0.5).all()
    Attending().load_state_dict(plain.state_dict())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_runs_quantized_in_eval_mode_as_in_training():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(4, 5, 8), torch.tensor([[0, 0, 0, 1, 1], [0] * 5, [0] * 5, [0, 0, 0, 0, 1]]).bool()
    with torch.no_grad():
        fast = encoder(x, src_key_padding_mask=padding)
        float_ = adapted(encoder)(x, src_key_padding_mask=padding)
    torch.testing.assert_close(float_[~padding], fast[~padding], rtol=1e-4, atol=1e-5)
    model = spequant.prepare(encoder, weight=LSQ(2), act=LSQ(2), residual=None)
    batch = {"src": x, "src_key_padding_mask": padding}
    spequant.calibrate(model, [batch], samples=4)
    with torch.no_grad():
        trained = model.train()(**batch)
        torch.testing.assert_close(model.eval()(**batch), trained)
        assert not torch.allclose(trained, float_, atol=1e-2)
        other = x.clone()
        other[padding] = 9.0  # nothing reads padding
        torch.testing.assert_close(model(other, src_key_padding_mask=padding)[~padding], trained[~padding])


@pytest.mark.parametrize("first", [True, False])
def test_additions_in_torchs_layers_are_marked_and_quantized(first):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "batch_first": True, "norm_first": first, "activation": "gelu"}
    layer = nn.TransformerEncoderLayer(8, 2, 16, **options)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    layer = nn.TransformerDecoderLayer(8, 2, 16, **options).eval()
    x, memory = torch.randn(4, 5, 8), torch.randn(4, 3, 8)
    padding = torch.tensor([[0, 0, 0, 1, 1], [0] * 5, [0] * 5, [0, 0, 0, 0, 1]]).bool()
    causal = nn.Transformer.generate_square_subsequent_mask(5).isinf()
    torch.testing.assert_close(adapted(encoder)(x, mask=causal), encoder(x, mask=causal), rtol=1e-4, atol=1e-5)
    given = {"tgt": x, "memory": memory, "tgt_mask": causal, "tgt_key_padding_mask": padding, "tgt_is_causal": True}
    given["memory_mask"] = torch.rand(5, 3) > 0.9
    torch.testing.assert_close(adapted(layer)(**given), layer(**given), rtol=1e-4, atol=1e-5, equal_nan=True)

    for network, batch, adds in ((encoder, {"src": x}, 4), (layer, {"tgt": x, "memory": memory}, 3)):
        model = spequant.prepare(network, weight=LSQ(4), act=LSQ(4))
        spequant.calibrate(model, [batch], samples=4)
        assert sum(isinstance(m, QuantizedAdd) for m in model.modules()) == adds
        model.train()(**batch).square().sum().backward()
        assert not [m.name for m in model.modules() if isinstance(m, LSQ) and m.step.grad is None]
        plain = spequant.unprepare(model)
        assert plain.state_dict().keys() == network.state_dict().keys()
        assert [type(m) for m in plain.modules()] == [type(m) for m in network.modules()]
        assert vars(plain).keys() == vars(network).keys()


def test_unmarked_additions_outside_torchs_encoder_are_found():
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

        def forward(self, x):
            return self.layer(self.a(x) + self.b(x))

    model = spequant.prepare(Outside(), weight=LSQ(4), act=LSQ(4))
    assert sum(isinstance(m, QuantizedAdd) for m in model.modules()) == 2
    assert [n for n, m in model.named_modules() if OUTPUT in m._modules] == ["a", "b"]


# --- windows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [0, 2])
def test_shifted_windows_by_layers_equal_torchvisions(kind, shift):
    layer = kind(16, [4, 4], [shift, shift], 2)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    other = adapted(layer)
    for height, width in ((8, 8), (7, 9), (4, 10), (3, 4), (12, 5)):
        x = torch.randn(2, height, width, 16)
        torch.testing.assert_close(other(x), layer(x), rtol=1e-4, atol=1e-5)
    expected, theirs = gradients(layer, layer(x)), gradients(other, other(x))
    for name, gradient in expected.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-3)
    keys = theirs["qkv.bias"][16:32]
    assert kind is ShiftedWindowAttention or not keys.any()
    layer.dropout = other.dropout = layer.attention_dropout = other.attention_dropout = 0.5
    assert not torch.equal(other(x), other(x))
    torch.testing.assert_close(other.eval()(x), layer.eval()(x), rtol=1e-4, atol=1e-5)
    adapters.restore(other)
    assert type(other) is kind and vars(other).keys() == vars(layer).keys()
    assert other.state_dict().keys() == layer.state_dict().keys()


def test_keys_of_swin_v2_have_no_bias():
    layer = adapted(ShiftedWindowAttentionV2(16, [4, 4], [2, 2], 2))
    nn.init.normal_(layer.qkv.bias)
    x = torch.randn(2, 7, 9, 16)
    before = layer(x)
    assert not gradients(layer, before)["qkv.bias"][16:32].any()
    with torch.no_grad():
        layer.qkv.bias[16:32] += 3.0
    torch.testing.assert_close(layer(x), before)


def with_random_biases(network):
    for name, p in network.named_parameters():
        if "bias" in name:
            nn.init.normal_(p, std=0.3)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_stay_equal_in_float_and_are_quantized_but_for_tables_of_positions(name):
    network, x = with_random_biases(NETWORKS[name]()), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(adapted(network)(x), network(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapted(network, products=True)(x), network(x), rtol=1e-4, atol=1e-5)
    model = quantized(network, x)
    left = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and not n.endswith(".layer")}
    assert all("cpb_mlp" in n for n in left) and bool(left) == ("V2" in name)
    assert sum("qkv" in n for n in weight_quantizers(model)) == (4 if name.startswith("torchvision") else 2)
    assert (model(x) - network(x)).abs().max() > 1e-3
    plain = spequant.unprepare(model)
    assert plain.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(plain(x), network(x), rtol=1e-4, atol=1e-5)


# --- standardised convolutions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame])
def test_standardised_weights_lie_on_the_grid_that_the_convolution_gets(kind, monkeypatch):
    network = nn.Sequential(kind(3, 6, 3, stride=2), nn.ReLU(), kind(6, 4, 3, bias=True))
    nn.init.normal_(network[2].bias)
    if hasattr(network[2], "gain"):
        nn.init.uniform_(network[2].gain, 0.5, 2.0)
    x = torch.randn(4, 3, 9, 8)
    torch.testing.assert_close(adapted(network)(x), network(x))
    model = quantized(network, x)
    seen, conv2d = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, weight, *rest: seen.append(weight) or conv2d(x, weight, *rest))
    out = model(x)
    for number, used in zip((0, 2), seen, strict=True):
        layer, q = network[number], model[number].weight_quantizer
        gain = layer.gain.detach().numpy() if hasattr(layer, "gain") else None
        literal = torch.from_numpy(standardised(layer.weight.detach().numpy(), layer.eps, gain))
        torch.testing.assert_close(used, q(literal), rtol=1e-4, atol=1e-5)
        assert len(used.unique()) <= 4
    grads = gradients(model, out)
    assert all(g is not None and g.any() for g in grads.values())
    along = grads["2.layer.weight"]
    assert (
        along.sum((1, 2, 3)).abs().max() < 1e-4 * along.abs().sum()
    )  # no gradient along the mean, which is subtracted
    back = spequant.unprepare(model)
    assert type(back[0]) is kind and torch.equal(back(x), network(x))


def test_standardised_convolutions_with_float_weights_are_standardised_as_before():
    network, x = nn.Sequential(StdConv2d(3, 6, 3), nn.ReLU(), StdConv2d(6, 4, 3)), torch.randn(4, 3, 8, 8)
    model = quantized(network, x, weight=None)
    inner = network[0](model[0].act_quantizer(x)).relu()
    torch.testing.assert_close(model(x), network[2](model[2].act_quantizer(inner)))


def test_gpt2s_layers_become_linear_layers_with_a_transposed_weight():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model, ids = GPT2LMHeadModel(config).eval(), torch.randint(0, 50, (8, 10))

    def run(network, batch):
        return network(input_ids=batch, use_cache=False).logits

    torch.testing.assert_close(run(adapted(model), ids), run(model, ids))
    quantized = spequant.prepare(model, weight=LSQ(4), act=LSQ(4), residual=None, per_channel=True)
    names = [n.rsplit(".", 1)[-1] for n, m in quantized.named_modules() if isinstance(m, QuantizedLayer)]
    assert names.count("c_attn") == names.count("c_fc") == 2 and names.count("c_proj") == 4
    spequant.calibrate(quantized, [ids], samples=8, run=run)
    run(quantized, ids).sum().backward()
    assert all(p.grad is not None for p in quantized.parameters() if p.requires_grad)
    weight = weight_quantizers(quantized)["transformer.h.0.mlp.c_fc"]
    assert weight.step.shape == (128, 1)  # one range per output
    back = spequant.unprepare(quantized)
    assert torch.equal(run(back, ids), run(model, ids))
    assert {k: v.shape for k, v in back.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_transformers_standardised_convolutions_get_a_weight_on_the_grid(monkeypatch):
    from transformers import BitConfig, BitModel

    model = BitModel(BitConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], num_groups=4)).eval()
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(adapted(model)(x).pooler_output, model(x).pooler_output)
    quantized = spequant.prepare(model, weight=LSQ(2), act=LSQ(2), residual=None, ends=2)
    spequant.calibrate(quantized, [x], samples=4)
    seen, plain = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, w, *rest: (seen.append(len(w.unique())), plain(x, w, *rest))[1])
    quantized(x)
    assert len(seen) == sum(isinstance(m, nn.Conv2d) for m in model.modules()) and max(seen) <= 4
    assert type(spequant.unprepare(quantized).embedder.convolution) is type(model.embedder.convolution)


@pytest.mark.parametrize("kind", ["ViT", "T5"])
def test_networks_that_read_only_the_type_of_a_weight_run(kind):
    import transformers

    if kind == "ViT":
        sizes = {"image_size": 16, "patch_size": 4, "intermediate_size": 64}
        config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **sizes)
        model, given = transformers.ViTModel(config).eval(), {"pixel_values": torch.randn(8, 3, 16, 16)}
    else:
        config = transformers.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=50)
        ids = torch.randint(0, 50, (8, 6))
        model, given = transformers.T5Model(config).eval(), {"input_ids": ids, "decoder_input_ids": ids}
    quantized = spequant.prepare(model, weight=LSQ(4), act=LSQ(4), residual=None)
    spequant.calibrate(quantized, [given], samples=8, run=lambda network, batch: network(**batch))
    assert quantized(**given).last_hidden_state.isfinite().all()


def test_a_quantized_layers_weight_shows_its_type_and_not_its_values():
    layer = spequant.prepare(nn.Sequential(nn.Linear(4, 3)), weight=LSQ(2), act=LSQ(2))[0]
    weight = layer.weight
    assert (weight.dtype, weight.shape, weight.size(0), weight.device.type) == (torch.float32, (3, 4), 3, "cpu")
    for use in (
        lambda: weight.detach(),
        lambda: weight.data,
        lambda: weight + 1,
        lambda: torch.ones(2, 4) @ weight,
        lambda: F.linear(torch.ones(2, 4), weight),
        lambda: weight.t(),
        lambda: copy.copy(weight).data,
        lambda: copy.deepcopy(weight).data,
    ):
        with pytest.raises((AttributeError, TypeError), match=r"is quantized: .*weight directly"):
            use()


def test_only_known_libraries_networks_have_tables_of_positions():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.token_projection, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.token_projection(x))

    model = spequant.prepare(Own(), weight=LSQ(2), act=LSQ(2), overrides={"token_projection": 4})
    assert list(weight_quantizers(model)) == ["token_projection", "head"]
