"""Residual additions that networks do not mark: which modules return the addends, and how those are quantized."""

import copy
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import DropPath
from torch import fx, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock
from torchvision.ops import StochasticDepth

import spequant
from spequant.layers import OUTPUT, QuantizedAdd, act_quantizers
from spequant.models import resnet8
from spequant.preparation.additions import find_additions
from spequant.quantizers import LSQ, PACT, SAWB, MinMax
from support.additions import Block, residual_network


class Opaque(nn.Module):
    """Control flow on values."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        return y + self.b(y) if y.sum() > 0 else y


def quantized(network, x, **options):
    model = spequant.prepare(network, **({"weight": SAWB(2), "act": PACT(2)} | options))
    spequant.calibrate(model, [x], samples=len(x), reestimate=False)
    return model


def outputs(model):
    return {n: m._modules[OUTPUT] for n, m in model.named_modules() if OUTPUT in m._modules}


def on_grid(q, x):
    return torch.equal(q(x), x)


@pytest.mark.parametrize(
    ("form", "pairs"),
    [
        ("x + f(x)", [("stem", "f")]),
        ("f(x) + g(x)", [("f", "g")]),
        ("torch.add", [("f", "g")]),
        ("torch.add, by keyword", [("f", "g")]),
        (".add", [("f", "g")]),
        ("+=", [("f", "stem")]),
        (".add_", [("f", "stem")]),
        ("in a sequence", [("sequence.0.1", "stem")]),
        ("called twice", []),
        ("function", []),
        ("parameter", []),
        ("number", []),
        ("to its own sum", [("stem", "f")]),
        ("scores", []),
    ],
)
def test_the_modules_that_make_the_addends_are_found(form, pairs):
    assert find_additions(Block(form)).pairs == pairs


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), nn.Dropout2d(0.5), StochasticDepth(0.5, "row"), DropPath(0.5)])
@pytest.mark.parametrize("form", ["dropped branch", "dropped shortcut"])
def test_a_tensor_is_quantized_before_dropout_scales_it(form, drop):
    network, x = Block(form, drop), torch.randn(16, 3, 8, 8)
    assert sorted(find_additions(network).pairs[0]) == ["f", "stem"]
    model = quantized(network, x)
    assert sorted(outputs(model)) == ["f", "stem"]
    seen = []
    model.drop.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model.train()(x)
    assert on_grid(outputs(model)["f" if form == "dropped branch" else "stem"], seen[0])


class Shared(nn.Module):
    """A sequence that ends with an activation which is used elsewhere, too."""

    def __init__(self):
        super().__init__()
        self.act, self.f, self.head = nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.sequence = nn.Sequential(nn.Conv2d(3, 3, 1), self.act)

    def forward(self, x):
        x = self.act(x)
        return self.head(self.sequence(x) + self.f(x))


def test_a_container_never_gets_a_quantizer():
    assert find_additions(Shared()).pairs == []


class Attending(nn.Module):
    def __init__(self, batch_first, drop):
        super().__init__()
        self.stem, self.head, self.drop = nn.Linear(8, 8), nn.Linear(8, 3), drop
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x):
        x = self.stem(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head(x + self.drop(y))


@pytest.mark.parametrize("drop", [nn.Identity(), nn.Dropout(0.5)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_output_of_torchs_attention_is_quantized_by_its_last_layer(batch_first, drop):
    network, x = Attending(batch_first, drop), torch.randn(4, 5, 8)
    model = quantized(network, x)
    maker = "drop" if type(drop) is nn.Identity else "attention.out_proj"
    assert sorted(outputs(model)) == sorted(["stem", maker])
    seen = []
    model.drop.register_forward_hook(lambda m, args, output: seen.extend((args[0], output)))
    model(x)
    assert on_grid(outputs(model)[maker], seen[maker == "drop"])


class Straight(nn.Module):
    """Dropout reads the input of the network, which no module returns."""

    def __init__(self, drop):
        super().__init__()
        self.drop, self.f, self.g = drop, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.g(self.drop(x) + self.f(x))


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), StochasticDepth(0.5, "row"), DropPath(0.5)])
def test_a_dropped_input_is_an_addend_too(drop):
    model = quantized(Straight(drop), torch.randn(8, 3, 4, 4))
    assert sorted(outputs(model)) == ["drop", "f"]


def test_additions_of_well_known_networks():
    pairs = find_additions(torchvision.models.resnet18()).pairs
    assert len(pairs) == 8 and pairs[:3] == [
        ("layer1.0.bn2", "maxpool"),
        ("layer1.1.bn2", "layer1.0"),
        ("layer2.0.bn2", "layer2.0.downsample.1"),
    ]
    pairs = find_additions(torchvision.models.mobilenet_v2()).pairs
    assert len(pairs) == 10 and pairs[0] == ("features.2.conv.3", "features.3.conv.3")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=2)
    pairs = find_additions(vit).pairs
    assert pairs == [
        ("norm_pre", "blocks.0.drop_path1"),
        ("blocks.0", "blocks.1.drop_path1"),
    ]  # other additions have a sum as an addend


def addends(model, x):
    """Return the addends of each addition of two activations in `model`, from an interpreted trace."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m, name):
            return not isinstance(m, Block | BasicBlock | nn.Sequential)

    seen = []

    class Run(fx.Interpreter):
        def call_function(self, target, args, kwargs):
            if target in (torch.add,) or getattr(target, "__name__", "") in ("add", "iadd"):
                seen.append(tuple(a.clone() for a in args))
            return super().call_function(target, args, kwargs)

    Run(fx.GraphModule(model, Tracer().trace(model))).run(x)
    return seen


@pytest.mark.parametrize("training", [True, False])
def test_addends_are_values_of_the_8_bit_grid(training):
    x = torch.randn(8, 3, 12, 12)
    for network in (Block("x + f(x)"), Block("+="), residual_network()):
        model = quantized(network, x).train(training)
        grids = list(outputs(model).values())
        assert grids and {q.bits for q in grids} == {8}
        seen = addends(model, x)
        pairs = find_additions(network).pairs
        assert len(seen) == len(pairs)
        for values, names in zip(seen, pairs, strict=True):
            for value, name in zip(values, names, strict=True):
                assert on_grid(outputs(model)[name], value) and 2 < len(value.unique()) <= 256


def test_networks_are_not_traced_where_additions_are_marked_or_stay_float(monkeypatch):
    x = torch.randn(4, 3, 8, 8)
    monkeypatch.setattr(
        sys.modules["spequant.preparation.choices"], "find_additions", lambda model: pytest.fail("traced")
    )
    model = quantized(resnet8(), x)
    assert any(isinstance(m, QuantizedAdd) for m in model.modules()) and not outputs(model)
    assert not outputs(quantized(Block("x + f(x)"), x, residual=None))
    assert not outputs(quantized(Block("x + f(x)"), x, act=None))
    assert not outputs(quantized(resnet8(), x, residual=None))
    spequant.prepare(Opaque(), weight=SAWB(2), act=PACT(2), residual=None)  # warnings are errors here


def test_a_network_that_cannot_be_traced_gives_a_warning():
    with pytest.warns(UserWarning, match=r"additions of Opaque.*control flow.*residual=None") as warned:
        model = spequant.prepare(Opaque(), weight=SAWB(2), act=PACT(2))
    assert warned[0].filename == __file__ and not outputs(model)


def test_other_quantizers_of_additions():
    x = torch.randn(16, 3, 8, 8)
    assert {q.bits for q in outputs(quantized(Block("x + f(x)"), x, residual=5)).values()} == {5}
    quantizers = outputs(quantized(Block("x + f(x)"), x, residual=MinMax(6)))
    assert {(type(q), q.bits) for q in quantizers.values()} == {(MinMax, 6)}
    names = list(act_quantizers(quantized(Block("x + f(x)"), x)))
    assert names == ["stem", "stem.output", "f", "f.output", "head"]


def test_copies_and_states_keep_them_and_unprepare_removes_everything():
    network, x = residual_network().eval(), torch.randn(8, 3, 12, 12)
    model = quantized(network, x).eval()
    fresh = spequant.prepare(network, weight=SAWB(2), act=PACT(2)).eval()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), fresh):
        assert torch.equal(other(x), model(x)) and outputs(other).keys() == outputs(model).keys()
    plain = spequant.unprepare(model)
    assert plain.state_dict().keys() == network.state_dict().keys() and not outputs(plain)
    assert not any(m._forward_hooks for m in plain.modules()) and torch.equal(plain(x), network(x))
    assert any(m._forward_hooks for m in model.modules())
    again = quantized(plain, x).eval()
    assert torch.equal(again(x), model(x))


def test_the_teacher_draws_bits_for_addends_as_for_inputs():
    x = torch.randn(16, 3, 8, 8)
    model = quantized(Block("x + f(x)"), x, residual=4, act=LSQ(2))
    widths = set()
    for step in range(20):
        with spequant.precision(model, spequant.Stochastic(8), step=step):
            widths.add(tuple(int(q.levels) for q in outputs(model).values()))
    assert {w for pair in widths for w in pair} == {16, 256} and len(widths) == 4
    eight = quantized(Block("x + f(x)"), x)
    with spequant.precision(eight, spequant.Stochastic(8, 1.0)):
        assert {int(q.levels) for q in outputs(eight).values()} == {255}


class Checkpointed(nn.Module):
    def __init__(self, on):
        super().__init__()
        self.on = on
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.on else block(x))
        return self.head(x.mean((2, 3)))


def test_checkpointed_activations_give_the_same_gradients():
    batch = torch.randn(8, 3, 8, 8), torch.randint(0, 3, (8,))
    plain = quantized(Checkpointed(False), batch[0], weight=LSQ(2), act=LSQ(2), residual=4)
    assert len(outputs(plain)) == 2  # the second addition's shortcut is a sum itself
    saving = copy.deepcopy(plain)
    saving.on = True
    for model in (plain, saving):
        spequant.SPEQ(seed=3)(model, batch).total.backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert p.grad is not None, name
        torch.testing.assert_close(q.grad, p.grad, msg=name)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.f, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.stem(x)
        z = y + self.f(y)
        y.mul_(100.0)
        return self.head(F.relu(z, inplace=True))


def test_ranges_are_those_of_values_before_they_are_changed_in_place():
    network, x = InPlace(), torch.randn(16, 3, 8, 8)
    model = quantized(network, x, act=MinMax(4), residual=MinMax(8))
    with torch.no_grad():
        y = network.stem(x)
        quantizers = outputs(model)
        for q, value in ((quantizers["stem"], y), (quantizers["f"], network.f(y))):
            assert float(q.bounds(x)[1]) == pytest.approx(float(value.abs().max()), rel=1e-2)


def test_optional_arguments_have_their_defaults():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, mask=None, *, twice=False):
            x = self.a(x)
            y = self.b(x if mask is None else x * mask)
            return x + (y if not twice else 2 * y)

    assert find_additions(Masked()).pairs == [("a", "b")]


class Functional(nn.Module):
    """Two residual blocks whose activation is a function, as many networks are written."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.head = (nn.Linear(4, 4) for _ in range(4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.one(x)) + x)
        return self.head(F.relu(self.two(x) + x))


def test_additions_of_results_that_no_module_returns_are_listed():
    additions = find_additions(Functional())
    assert additions.pairs == [] and len(additions.missed) == 2
    assert all("the result of relu" in missed for missed in additions.missed)
    inner = find_additions(nn.Sequential(Functional()))
    assert all(missed.startswith("0: ") for missed in inner.missed)
    twice = find_additions(Shared())
    assert len(twice.missed) == 1


def test_what_is_added_to_a_size_is_no_second_addend():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x)
            return self.b(y + y.size(1)) + y.shape[0] * y.dim()

    found = find_additions(Sized())
    assert not found.pairs and not found.missed
