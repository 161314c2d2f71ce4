"""How much of a network is quantized: multiply-accumulates counted by hand, and what is named as float."""

import pytest
import torch
from torch import nn

import spequant
from spequant.preparation.coverage import PRODUCTS, coverage
from spequant.quantizers import PACT, SAWB
from support.additions import Block
from support.attention import Attending


def prepared(network, x, **options):
    model = spequant.prepare(network, **({"weight": SAWB(4), "act": PACT(4)} | options))
    spequant.calibrate(model, [x], samples=len(x))
    return model


def test_layers_and_addends_are_counted_and_shares_add_up():
    x = torch.randn(4, 3, 8, 8)
    model = prepared(Block("x + f(x)"), x, overrides={"head": (4, None)})  # its input in float
    found = coverage(model.train(), x)
    stem, f, head = 4 * 64 * 3 * 4, 4 * 64 * 9 * 4 * 4, 4 * 4 * 3
    assert (found.layers, found.additions, found.products) == (2, 2, 0) and model.training
    assert found.share == pytest.approx((stem + f) / (stem + f + head))
    assert found.in_float == {"layers with one side float": pytest.approx(head / (stem + f + head))}


def test_layers_in_float_are_named_for_why_they_are():
    x = torch.randn(4, 3, 8, 8)
    found = coverage(prepared(Block("x + f(x)"), x, act=None), x)
    assert (found.layers, found.share) == (0, 0) and found.in_float == {"layers with one side float": 1}
    found = coverage(prepared(Block("x + f(x)"), x, skip=["f"], residual=None), x)
    assert found.additions == 0 and list(found.in_float) == ["layers left float"]
    assert found.share + sum(found.in_float.values()) == pytest.approx(1)


def test_products_are_float_unless_they_are_asked_for():
    x = torch.randn(4, 5, 8)
    found = coverage(prepared(Attending(), x), x)
    assert found.products == 0 and list(found.in_float) == [PRODUCTS]
    found = coverage(prepared(Attending(), x, products=8), x)
    assert found.products == 2 and found.in_float == {} and found.share == 1


def test_a_network_without_products_has_nothing_to_cover():
    with pytest.raises(ValueError, match="model ran no convolution"):
        coverage(nn.ReLU(), torch.ones(2))


@pytest.mark.filterwarnings("ignore:modules whose weights are not quantized")
def test_what_torchs_table_lacks_is_counted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 16)
            self.last, self.vector = nn.Linear(16, 16), nn.Parameter(torch.randn(16))

        def forward(self, x):
            return self.last(self.head(self.rnn(x)[0])).flatten(0, 1) @ self.vector

    x = torch.randn(64, 5, 8)
    model = spequant.prepare(Net(), weight=SAWB(4), act=PACT(4), residual=None)
    spequant.calibrate(model, [x], samples=64)
    found = coverage(model, x)
    steps, recurrent, linear, product = 64 * 5, 4 * 16 * (8 + 16), 2 * 16 * 16, 16
    total = steps * (recurrent + linear + product)
    assert found.share == pytest.approx(steps * linear / total)
    assert found.in_float["LSTM: weights that are no layer's"] == pytest.approx(steps * recurrent / total)


class Between(nn.Module):
    """`body` between two layers of eight."""

    def __init__(self, body):
        super().__init__()
        self.a, self.body, self.z = nn.Linear(8, 8), body, nn.Linear(8, 4)

    def forward(self, x):
        return self.z(self.body(self.a(x)))


class Bilinear(nn.Bilinear):
    def forward(self, x):
        return super().forward(x, x)


class Experts(nn.Module):
    """Three matrices in one parameter."""

    def __init__(self, multiply):
        super().__init__()
        self.weight, self.multiply = nn.Parameter(torch.randn(3, 8, 8)), multiply

    def forward(self, x):
        return self.multiply(x, self.weight)


class First(nn.Module):
    """The first result of a recurrent layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        found = self.layer(x if isinstance(self.layer, nn.RNNBase) else x[:, 0])
        found = found[0] if isinstance(found, tuple) else found
        return found if found.dim() == 3 else found.unsqueeze(1).expand(-1, 5, -1)


SEQUENCES = 64 * 5
OTHERS = {
    "bilinear": (Bilinear(8, 8, 8), "Bilinear", 8 * 8 * 8 * SEQUENCES),
    "einsum": (Experts(lambda x, w: torch.einsum("btd,edf->btf", x, w)), "Experts", None),
    "matmul": (Experts(lambda x, w: (x.unsqueeze(1) @ w).sum(1)), "Experts", 3 * 8 * 8 * SEQUENCES),
    "bmm": (Experts(lambda x, w: torch.bmm(x[:3], w).sum(0) + x), "Experts", 3 * 8 * 8 * 5),
    "rnn": (First(nn.RNN(8, 8, batch_first=True)), "RNN", 2 * 8 * 8 * SEQUENCES),
    "gru": (First(nn.GRU(8, 8, batch_first=True)), "GRU", 3 * 2 * 8 * 8 * SEQUENCES),
    "lstm": (First(nn.LSTM(8, 8, batch_first=True)), "LSTM", 4 * 2 * 8 * 8 * SEQUENCES),
    "rnn cell": (First(nn.RNNCell(8, 8)), "RNNCell", 2 * 8 * 8 * 64),
    "gru cell": (First(nn.GRUCell(8, 8)), "GRUCell", 3 * 2 * 8 * 8 * 64),
    "lstm cell": (First(nn.LSTMCell(8, 8)), "LSTMCell", 4 * 2 * 8 * 8 * 64),
}


@pytest.mark.filterwarnings("ignore:modules whose weights are not quantized")
@pytest.mark.parametrize("case", OTHERS)
def test_weights_that_are_no_layers_are_counted_as_float(case):
    body, name, count = OTHERS[case]
    x = torch.randn(64, 5, 8)
    found = coverage(prepared(Between(body), x, residual=None), x)
    layers = (8 * 8 + 8 * 4) * SEQUENCES
    assert list(found.in_float) == [f"{name}: weights that are no layer's"]
    if count is not None:
        assert found.in_float[f"{name}: weights that are no layer's"] == pytest.approx(count / (count + layers))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ["bilinear", "gru", "lstm cell"])
def test_modules_that_stay_float_are_told_unless_skip_names_them(case):
    body = OTHERS[case][0]
    name = "body" if case == "bilinear" else "body.layer"
    with pytest.raises(UserWarning, match=rf"stay float: {name} \("):
        spequant.prepare(Between(body), weight=SAWB(4), act=PACT(4), residual=None)
    spequant.prepare(Between(body), weight=SAWB(4), act=PACT(4), residual=None, skip=[name])
