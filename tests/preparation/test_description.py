"""A prepared network described as JSON, and a float network prepared again from it: equal outputs, bit for bit."""

import copy
import json

import pytest
import torch
from torch import nn

import spequant
from spequant.layers import act_slots
from spequant.preparation.description import describe, prepare_as
from spequant.quantizers import CSQ, LSQ, PACT, SAWB, APoT, DoReFa, LSQPlus, MinMax, percentile, set_ewgs
from spequant.train.freezing import OscillationFreezer
from support.additions import Block, residual_network
from support.attention import NETWORKS, Attending, gradients


class Encoder(nn.Module):
    """torch's encoder layer, whose additions and products are adapted, between a table and a tied head."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.layer(self.table(ids)))


def images():
    return torch.randn(8, 3, 12, 12)


CASES = {
    "additions found": (residual_network, images, {"weight": SAWB(2), "act": PACT(2, decay=0.1)}),
    "one addend found": (lambda: Block("f(x) + g(x)"), images, {"weight": LSQ(3), "act": LSQPlus(3), "ends": 4}),
    "attention of torch": (
        Attending,
        lambda: torch.randn(8, 5, 8),
        {"weight": CSQ(3), "act": LSQ(4), "products": LSQPlus(5), "per_channel": True},
    ),
    "an encoder, tied": (
        Encoder,
        lambda: torch.randint(0, 20, (8, 5)),
        {"weight": LSQ(4), "act": MinMax(4), "products": 6, "embeddings": 3, "overrides": {"head": (3, 5)}},
    ),
    "several widths, parts float": (
        residual_network,
        images,
        {
            "weight": APoT(4),
            "act": DoReFa(3),
            "ends": None,
            "residual": None,
            "overrides": {"1.conv1": (2, None), "2.*": (None, 5), "3.conv2": (LSQ(2), PACT(6))},
            "skip": ["3.downsample.*"],
        },
    ),
}


def trained(name):
    """(float network, prepared network that has taken a step, an input) of a case."""
    make, inputs, options = CASES[name]
    torch.manual_seed(0)
    network, x = make().eval(), inputs()
    model = spequant.prepare(network, **options)
    spequant.calibrate(model, [x], samples=8, rule=percentile(99.9), reestimate=False)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2)
    output = model(x)
    output.square().mean().backward()
    optimizer.step()
    return network, model.eval(), x


def made_again(network, model):
    """A float network, not the one of `model`, prepared as the JSON of `model` says, with its state."""
    again = prepare_as(network, json.loads(json.dumps(describe(model))))
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    return again.eval()


def check_equal(model, again, x):
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    assert describe(model) == describe(again)
    quantizers = [[getattr(module, attribute) for _, module, attribute in act_slots(m)] for m in (model, again)]
    sharing = [[[a is b for a in qs] for b in qs] for qs in quantizers]
    assert sharing[0] == sharing[1] and str(model) == str(again)
    trainable = [[(name, p.requires_grad) for name, p in m.named_parameters()] for m in (model, again)]
    assert trainable[0] == trainable[1]


def same(a, b):
    a, b = ({name: t for name, t in tensors.items() if t is not None} for tensors in (a, b))
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize(
    "name",
    [n if n in ("additions found", "an encoder, tied") else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_a_network_is_prepared_again_from_its_description(name):
    network, model, x = trained(name)
    before = copy.deepcopy(network.state_dict())
    again = made_again(network, model)
    check_equal(model, again, x)
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    assert same(gradients(model, model(x)), gradients(again, again(x)))  # it trains on
    assert all(
        torch.equal(a, b) for a, b in zip(*(spequant.unprepare(m).parameters() for m in (model, again)), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_adapted_attention_is_adapted_again(name):
    torch.manual_seed(0)
    network, x = NETWORKS[name]().eval(), torch.randn(8, 3, 32, 32)
    products = None if name in ("BEiT", "EVA", "timm Swin V2") else 8
    model = spequant.prepare(network, weight=LSQ(3), act=LSQPlus(3), products=products)
    spequant.calibrate(model, [x], samples=8)
    check_equal(model.eval(), made_again(network, model), x)


@pytest.mark.slow
def test_frozen_weights_and_ewgs_come_back():
    network, model, x = trained("additions found")
    set_ewgs(model, 0.01)
    OscillationFreezer(model, threshold=0.1)
    for module in model.modules():
        if getattr(module, "frozen", None) is not None:
            module.frozen.fill_(True)
    again = made_again(network, model)
    check_equal(model, again, x)
    assert sum(getattr(m, "frozen", None) is not None for m in again.modules()) > 3
    assert {q.ewgs for q in spequant.layers.act_quantizers(again).values()} == {0.01}


def test_powers_of_two_come_back():
    network, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(8, 4)
    lsq = LSQ(4, power_of_two=True)
    model = spequant.prepare(network, weight=lsq, act=lsq, per_channel=True)
    spequant.calibrate(model, [x], samples=8)
    again = made_again(network, model.eval())
    check_equal(model, again, x)
    free = spequant.prepare(network, weight=LSQ(4), act=LSQ(4), per_channel=True)
    with pytest.raises(ValueError, match="than LSQ;"):
        free.load_state_dict(model.state_dict())


def test_a_description_of_something_else_is_refused():
    network = Block("f(x) + g(x)")
    model = spequant.prepare(network, weight=LSQ(3), act=LSQPlus(3))
    description = describe(model)
    with pytest.raises(ValueError, match="not prepared"):
        describe(network)
    for change, message in {
        "version": "version is None",
        "network": "network is None",
        "adapted": "adapted is None",
        "slots": "slots is None",
        "quantizers": "quantizers is None",
    }.items():
        with pytest.raises(ValueError, match=message):
            prepare_as(network, {key: value for key, value in description.items() if key != change})
    with pytest.raises(ValueError, match="version is 2"):
        prepare_as(network, {**description, "version": 2})
    with pytest.raises(ValueError, match="Sequential has not"):
        prepare_as(nn.Sequential(nn.Linear(4, 4)), description)
    with pytest.raises(ValueError, match="attention, which Block"):
        prepare_as(network, {**description, "adapted": ["attention"]})
    for slots, message in (
        ({"f.weight_quantizer": 0}, "'f', a Conv2d"),
        ({"f.weight_quantizer": 99, "f.act_quantizer": 0}, "'f.weight_quantizer': 99"),
        ({"f.weight_quantizer": True, "f.act_quantizer": 0}, "'f.weight_quantizer': True"),
        ({"f.left_quantizer": 0, "f.right_quantizer": None}, "'f', a Conv2d"),
        ({"weight_quantizer": 0, "act_quantizer": 1}, "'', a Block"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_as(network, {**description, "slots": slots})
    with pytest.raises(ValueError, match="already"):
        prepare_as(model, description)


def test_a_network_from_a_packed_file_that_was_standardised_is_refused(tmp_path):
    network = standardised_network().eval()
    model = spequant.prepare(network, weight=LSQ(3), act=PACT(3))
    spequant.calibrate(model, [torch.rand(8, 3, 8, 8)], samples=8)
    spequant.pack(model, tmp_path / "net.packed")
    with pytest.raises(ValueError, match=r"0: .*packed"):
        describe(spequant.load_packed(tmp_path / "net.packed", network))


def standardised_network():
    from timm.layers.std_conv import StdConv2d

    return nn.Sequential(StdConv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
