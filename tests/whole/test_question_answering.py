"""transformers' networks for question answering: embeddings, attention's products, methods, exports, packed files."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from reference.attention import attention
from spequant.layers import QuantizedLayer, QuantizedProduct, weight_quantizers
from spequant.methods.tasks import SpanExtraction
from spequant.quantizers import LSQ, PACT, SAWB, LSQPlus, MinMax, percentile
from support.transformers_networks import CONFIGS, LENGTH, answering, inputs, tokens


def quantized(network, batch, weight=None, act=None, **settings):
    weight, act = weight or SAWB(4), act or LSQPlus(4)
    settings = {"residual": None, "products": 4, **settings}
    model = spequant.prepare(network, weight=weight, act=act, **settings)
    spequant.calibrate(model, [inputs(batch)], samples=len(batch["input_ids"]), rule=percentile(99.9))
    return model


def bits_of(**settings):
    """Of each layer's weights by name, of a network that is not calibrated."""
    model = spequant.prepare(answering(), **{"weight": SAWB(4), "act": LSQPlus(4), "residual": None, **settings})
    return {n: q.bits for n, q in weight_quantizers(model).items()}


# --- embeddings --------------------------------------------------------------------------------------------------


def test_embeddings_have_few_values_and_gradients_reach_the_rows_that_were_read():
    batch = tokens()
    model = quantized(answering(), batch, embeddings=3)
    table = model.bert.embeddings.word_embeddings
    assert isinstance(table, QuantizedLayer) and table.act_quantizer is None
    rows = table(batch["input_ids"])
    assert len(rows.unique()) <= 8
    low, high = (float(b.detach()) for b in table.weight_quantizer.bounds(table.float_weight))
    w = table.float_weight.detach().double().numpy()
    codes = np.clip(np.round((w - low) / (high - low) * 7), 0, 7)  # SAWB's eight levels at 3 bits
    expected = torch.from_numpy(codes / 7 * (high - low) + low).float()[batch["input_ids"]]
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)
    spequant.Retrain(task=SpanExtraction())(model, batch).total.backward()
    seen = batch["input_ids"][batch["attention_mask"] > 0]
    read = torch.zeros(len(w), dtype=torch.bool).index_fill_(0, seen, True)
    moved = table.layer.weight.grad.abs().sum(1) > 0
    assert not moved[~read].any() and moved[read].all()


def test_embeddings_have_8_bits_and_stand_for_the_first_layer():
    bits = bits_of(weight=SAWB(3))
    assert {n for n, b in bits.items() if b == 8} == {
        "bert.embeddings.word_embeddings",
        "bert.embeddings.position_embeddings",
        "bert.embeddings.token_type_embeddings",
        "qa_outputs",
    }
    assert {b for n, b in bits.items() if b != 8} == {3}
    bits = bits_of(embeddings=None)
    assert not any("embeddings" in n for n in bits) and bits["qa_outputs"] == 8
    chosen = {"*word_embeddings": 2, "*position_embeddings": (LSQ(5), None), "*token_type_embeddings": None}
    found = weight_quantizers(
        spequant.prepare(answering(), weight=SAWB(4), act=LSQPlus(4), residual=None, overrides=chosen)
    )
    assert found["bert.embeddings.word_embeddings"].bits == 2
    assert isinstance(found["bert.embeddings.position_embeddings"], LSQ)
    assert "bert.embeddings.token_type_embeddings" not in found


def test_an_embedding_alone_and_one_range_a_row():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 8)

        def forward(self, x):
            return self.table(x).mean(1)

    x = torch.randint(0, 50, (4, 6))
    model = spequant.prepare(Bag(), weight=LSQ(2), act=None, embeddings=2, per_channel=True)
    spequant.calibrate(model, [x], samples=4)
    assert model.table.weight_quantizer.shape == (50, 1)
    assert all(len(row.unique()) <= 4 for row in model.table(x).flatten(0, 1))
    assert type(spequant.unprepare(model).table) is nn.Embedding


@pytest.mark.parametrize("name", ["max_norm", "sparse"])
def test_embeddings_that_cannot_be_quantized_are_named(name):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4, **{name: True})
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.table(x))

    with pytest.raises(ValueError, match=rf"table is .* with .*{name}.*skip=\['table'\]"):
        spequant.prepare(Bag(), weight=SAWB(4), act=PACT(4))
    spequant.prepare(Bag(), weight=SAWB(4), act=PACT(4), skip=["table"])


def test_an_embedding_takes_no_activation_bits():
    with pytest.raises(ValueError, match=r"word_embeddings: \(4, 4\)"):
        spequant.prepare(answering(), weight=SAWB(4), act=PACT(4), overrides={"*word_embeddings": (4, 4)})


def test_a_table_tied_to_the_head_shares_its_quantizer():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mid, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(self.mid(self.table(x)))

    model = spequant.prepare(Tied(), weight=SAWB(4), act=LSQ(4))
    assert model.table.weight_quantizer is model.head.weight_quantizer
    with pytest.raises(ValueError, match="table and head"):
        spequant.prepare(Tied(), weight=SAWB(4), act=LSQ(4), embeddings=4)


# --- attention ---------------------------------------------------------------------------------------------------


QUICK = {("bert", "sdpa"), ("distilbert", "eager"), ("albert", "sdpa")}
FORMS = [
    pytest.param(kind, form, marks=[] if (kind, form) in QUICK else pytest.mark.slow)
    for kind in CONFIGS
    for form in ("sdpa", "eager")
]


def attends_by(network, batch, monkeypatch):
    """Which of its own forms of attention a network computes."""
    calls, own = [], F.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", lambda *args, **kw: (calls.append(1), own(*args, **kw))[1])
        network(**inputs(batch))
    return "sdpa" if calls else "eager"


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_networks_of_transformers_are_quantized_and_restored(kind, form, monkeypatch):
    two = {"n_layers" if kind == "distilbert" else "num_hidden_layers": 2}
    network, batch = answering(kind, form, **two), tokens()
    before = network(**inputs(batch)).start_logits
    model = quantized(network, batch)
    products = [m for m in model.modules() if isinstance(m, QuantizedProduct)]
    assert len(products) == (2 if kind == "albert" else 4)  # ALBERT's layers are one
    sides: list[tuple[int, int]] = []
    for product in products:
        product.product.register_forward_pre_hook(lambda m, pair: sides.append(tuple(len(s.unique()) for s in pair)))
    losses = spequant.SPEQ(task=SpanExtraction())(model.train(), batch)
    losses.total.backward()
    assert sides and all(n <= 256 for pair in sides for n in pair) and min(n for pair in sides for n in pair) <= 16
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert all(n.endswith("mix.left_quantizer.offset") for n in without)  # of probabilities, which have no sign
    plain = spequant.unprepare(model).eval()
    assert attends_by(plain, batch, monkeypatch) == attends_by(network, batch, monkeypatch) == form
    assert [type(m) for m in plain.modules()] == [type(m) for m in network.modules()]
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(plain(**inputs(batch)).start_logits[mask], before[mask])
    state = copy.deepcopy(model.state_dict())
    again = quantized(network, batch)
    again.load_state_dict(state)
    model.eval(), again.eval()
    assert torch.equal(again(**inputs(batch)).end_logits, model(**inputs(batch)).end_logits)


def test_its_attention_equals_the_literal_twin():
    batch = tokens()
    network = answering()
    model = quantized(network, batch)
    inner = model.bert.encoder.layer[0].attention.self
    seen = {}
    inner.register_forward_pre_hook(lambda m, args, kwargs: seen.update(x=args[0], **kwargs), with_kwargs=True)
    inner.register_forward_hook(lambda m, args, out: seen.update(out=out[0]))
    with torch.no_grad():
        model(**inputs(batch))
        q, k, v = (
            layer(seen["x"]).unflatten(-1, (2, 8)).transpose(1, 2).double().numpy()
            for layer in (inner.query, inner.key, inner.value)
        )
    quantizers = [getattr(p, f"{side}_quantizer") for p in (inner.scores, inner.mix) for side in ("left", "right")]
    assert [bool(g.signed) for g in quantizers] == [True, True, False, True]
    grids = [(*(float(b.detach()) for b in g.bounds(seen["x"])), int(g.levels)) for g in quantizers]
    mask = np.where(batch["attention_mask"].bool().numpy(), 0.0, -1e30)[:, None, None]
    expected = attention(q, k, v, np.broadcast_to(mask, (8, 2, LENGTH, LENGTH)), grids)
    torch.testing.assert_close(seen["out"], torch.from_numpy(expected).float().transpose(1, 2).flatten(2))


def test_what_changes_attention_and_is_not_known_is_refused():
    from spequant.preparation.adapters.transformers_attention import attention as function

    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"Linear .*softcap.*products=None"):
        function(nn.Linear(1, 1), x, x, x, None, softcap=30.0)


def test_keys_of_fewer_heads_serve_several():
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        num_attention_heads=4,
        num_hidden_layers=1,
        intermediate_size=32,
        max_position_embeddings=64,
        num_key_value_heads=2,  # of one alone, which head serves which could not be told
    )
    network = transformers.AutoModelForQuestionAnswering.from_config(config).eval()
    batch = inputs(tokens())
    mask = batch["attention_mask"].bool()
    exact = spequant.prepare(network, weight=None, act=MinMax(8), ends=None, residual=None, products=8)
    spequant.calibrate(exact, [batch], samples=8)
    found, expected = exact(**batch).start_logits, network(**batch).start_logits
    assert (found - expected)[mask].abs().max() < 0.1 * expected[mask].std()


def test_residual_additions_of_a_network_that_cannot_be_traced_are_told():
    with pytest.warns(UserWarning, match="residual additions of BertForQuestionAnswering"):
        spequant.prepare(answering(), weight=SAWB(4), act=PACT(4))


# --- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["retrain", "speq", "speq of two passes", "distill"])
def test_methods_train_it(name):
    batch, network, task = tokens(), answering(), SpanExtraction()
    model = quantized(network, batch, act=LSQPlus(3)).train()
    method = {
        "retrain": lambda: spequant.Retrain(task=task),
        "speq": lambda: spequant.SPEQ(task=task),
        "speq of two passes": lambda: spequant.SPEQ(task=task, passes=2),
        "distill": lambda: spequant.Distill(network, task=task),
    }[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = last = None
    for _ in range(8):
        losses = method(model, batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        first, last = first or float(losses.task.detach()), float(losses.task.detach())
    assert torch.isfinite(losses.total) and last < first
    assert losses.logits.shape == (8, 2, LENGTH)
    assert name == "retrain" or float(losses.distill.detach()) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spequant.unprepare(model)


# --- export ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param("bert", {"products": 8}, marks=pytest.mark.slow),  # quick: test_any_network_mixed
        pytest.param("bert", {"products": None, "per_channel": True}, marks=pytest.mark.slow),
        pytest.param("bert", {"embeddings": None}, marks=pytest.mark.slow),
        pytest.param("roberta", {"weight": SAWB(2), "embeddings": 2}, marks=pytest.mark.slow),
        pytest.param("distilbert", {"act": PACT(8), "products": None}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_exported_it_answers_alike_for_any_number_of_any_length(kind, settings, tmp_path):
    pytest.importorskip("onnxscript")
    import onnx

    from spequant.deploy import engines, export_mixed

    batch = tokens(16)
    model = quantized(answering(kind), batch, **settings).eval()
    parity, mixed = export_mixed(model, tmp_path / "model.onnx", [inputs(batch)])
    assert parity.images == 32 and parity.equal >= 31 and not parity.labelled
    assert mixed.inputs == ("input_ids", "attention_mask") and mixed.outputs == ("start_logits", "end_logits")
    assert mixed.batch is None and not any("qa_outputs" in island for island in mixed.islands)
    tables = [name for name in mixed.integers if name.endswith("embeddings")]
    assert len(tables) == (0 if settings.get("embeddings", 8) is None else 2 if kind == "distilbert" else 3)
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    layers = 6 + 1
    assert kinds.count("MatMulInteger") == layers + (0 if settings.get("products", 4) is None else 2)
    assert sum(i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 2 for i in graph.initializer) == layers + len(
        tables
    )
    run = engines.onnxruntime(tmp_path / "model.onnx")
    for samples, length in ((1, 5), (3, 30)):
        other = inputs(tokens(samples, length, seed=1))
        got = run({name: x.numpy() for name, x in other.items()})
        with torch.no_grad():
            expected = model(**other)
        mask = other["attention_mask"].bool()
        for out, name in zip(got, mixed.outputs, strict=True):
            close = (torch.from_numpy(out) - expected[name]).abs()[mask] < 0.2 * expected[name][mask].std()
            assert out.shape == (samples, length) and close.float().mean() > 0.9  # ties apart


def test_an_exported_table_holds_the_very_values():
    from spequant.deploy.integer_modules import IntegerEmbedding

    batch = tokens()
    for per_channel in (False, True):
        model = quantized(answering(), batch, embeddings=4, weight=LSQ(4), per_channel=per_channel)
        table = model.bert.embeddings.word_embeddings
        made = IntegerEmbedding(table)
        scale = made.scale[batch["input_ids"]] if per_channel else made.scale
        found = made.codes[batch["input_ids"]].float() * scale
        torch.testing.assert_close(found, table(batch["input_ids"]).detach(), rtol=1e-6, atol=1e-7)
        assert made.codes.dtype == torch.int8


def test_what_an_export_cannot_be_given_is_named(tmp_path):
    pytest.importorskip("onnxscript")
    from spequant.deploy import export_mixed

    batch = inputs(tokens())
    model = quantized(answering(), batch | {"start_positions": torch.zeros(8)})
    with pytest.raises(ValueError, match="preprocessing is given"):
        export_mixed(model, tmp_path / "model.onnx", [batch], preprocessing=((0.5,), (0.5,)))
    assert not list(tmp_path.iterdir())


def test_packed_it_answers_bit_for_bit(tmp_path):
    batch = tokens()
    network = answering()
    model = quantized(network, batch, embeddings=4, per_channel=True).eval()
    spequant.pack(model, tmp_path / "model.packed")
    loaded = spequant.load_packed(tmp_path / "model.packed", network)
    for name in ("start_logits", "end_logits"):
        assert torch.equal(loaded(**inputs(batch))[name], model(**inputs(batch))[name])
    assert isinstance(loaded.bert.embeddings.word_embeddings, QuantizedLayer)


def test_its_cost_counts_tables_without_multiplications():
    from spequant.deploy import model_costs

    batch = inputs(tokens())
    costs = {c.name: c for c in model_costs(quantized(answering(), batch), batch)}
    table = costs["bert.embeddings.word_embeddings"]
    assert (table.macs, table.weight_bits, table.size) == (0, 8, table.weights)
    query = costs["bert.encoder.layer.0.attention.self.query"]
    assert query.macs == 16 * 16 * LENGTH and (query.weight_bits, query.act_bits) == (4, 4)
