"""Which layers read one tensor, and that `prepare` gives them one quantizer before anything has run."""

import pytest
import torch
import torchvision
from torch import nn

import spequant
from spequant.layers import act_quantizers
from spequant.models import resnet8
from spequant.preparation.sharing import readers_together
from spequant.quantizers import LSQ, PACT, SAWB
from support.transformers_networks import answering


class Branches(nn.Module):
    """`a`, `b` (after dropout) and `c` read one tensor; `twice` reads it and another one."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.c, self.twice, self.out = (nn.Linear(4, 4) for _ in range(6))
        self.drop, self.same = nn.Dropout(0.1), nn.Identity()

    def forward(self, x):
        h = self.stem(x).relu()
        y = self.a(h) + self.b(self.drop(h)) + self.c(input=self.same(h))
        return self.out(self.twice(h) + self.twice(y))


class Untraceable(nn.Module):
    """A network that cannot be traced, with a part that can."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = Branches(), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.inner(x)) if x.sum() > -1e9 else x


class Reused(nn.Module):
    """A part that runs twice, whose layers read the same tensor each time."""

    def __init__(self):
        super().__init__()
        self.part = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4)})

    def forward(self, x):
        for _ in range(2):
            x = self.part["one"](x) + self.part["two"](x)
        return x


def names(network):
    return sorted([name for name, _ in group] for group in readers_together(network))


CASES = {
    "branches": (Branches(), [["a", "b", "c"]]),
    "untraceable": (Untraceable(), [["inner.a", "inner.b", "inner.c"]]),
    "reused": (Reused(), [["part.one", "part.two"]]),
    "in a row": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), []),
    "one layer": (nn.Linear(4, 4), []),
}


@pytest.mark.parametrize("case", CASES)
def test_readers_of_one_tensor_are_found(case):
    network, expected = CASES[case]
    assert names(network) == expected


def test_a_residual_blocks_input_is_read_by_its_first_layer_and_its_shortcut():
    groups = names(torchvision.models.resnet18(num_classes=4))
    assert groups == [[f"layer{i}.0.conv1", f"layer{i}.0.downsample.0"] for i in (2, 3, 4)]


def test_a_marked_addition_shares_a_quantizer_where_bits_are_equal():
    network = resnet8()
    eight = spequant.prepare(network, weight=SAWB(8), act=PACT(8))
    assert eight.layer1[0].add.shortcut_quantizer is eight.layer1[0].conv1.act_quantizer
    two = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
    assert two.layer1[0].add.shortcut_quantizer is not two.layer1[0].conv1.act_quantizer


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_queries_keys_and_values_of_transformers_share(kind):
    model = spequant.prepare(answering(kind), weight=SAWB(2), act=LSQ(2), residual=None)
    groups = {}
    for name, module in model.named_modules():
        if getattr(module, "act_quantizer", None) is not None:
            groups.setdefault(id(module.act_quantizer), []).append(name.rpartition(".")[2])
    shared = [sorted(group) for group in groups.values() if len(group) > 1]
    assert shared and all(group in (["key", "query", "value"], ["k_lin", "q_lin", "v_lin"]) for group in shared)


def test_queries_of_cross_attention_share_no_quantizer():
    from transformers import T5Config, T5Model

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 10}
    groups = names(T5Model(T5Config(**sizes, feed_forward_proj="gated-gelu")))
    attention, crossed = "decoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.1.EncDecAttention"
    assert [f"{attention}.q", f"{attention}.k", f"{attention}.v"] in groups
    assert [f"{crossed}.k", f"{crossed}.v"] in groups
    assert ["encoder.block.0.layer.1.DenseReluDense.wi_0", "encoder.block.0.layer.1.DenseReluDense.wi_1"] in groups


@pytest.mark.parametrize("wrapped", [False, True])
def test_projections_of_torchs_attention_share_a_quantizer(wrapped):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.TransformerEncoder(layer, 1) if wrapped else layer
    model = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
    attention = (model.layers[0] if wrapped else model).self_attn
    assert attention.q.act_quantizer is attention.k.act_quantizer is attention.v.act_quantizer
    assert attention.out_proj.act_quantizer is not attention.q.act_quantizer
    decoder = spequant.prepare(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), weight=SAWB(2), act=PACT(2))
    crossed = decoder.multihead_attn
    assert crossed.k.act_quantizer is crossed.v.act_quantizer is not crossed.q.act_quantizer


def test_an_optimizer_made_before_calibration_trains_all_ranges():
    torch.manual_seed(0)
    model = spequant.prepare(Branches(), weight=SAWB(2), act=PACT(2), residual=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(64, 4)
    spequant.calibrate(model, [x], samples=64)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()} and len(act_quantizers(model)) == 4
    before = {name: float(q.clip.detach()) for name, q in act_quantizers(model).items()}
    (model(x).square().mean() + sum(q.clip.sum() for q in act_quantizers(model).values())).backward()
    optimizer.step()
    assert all(float(q.clip.detach()) != before[name] for name, q in act_quantizers(model).items())


def test_a_saved_state_is_loaded_into_a_network_prepared_anew():
    torch.manual_seed(0)
    network, x = Branches().eval(), torch.randn(64, 4)
    model = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [x], samples=64)
    fresh = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x)) and len(act_quantizers(fresh)) == len(act_quantizers(model))
