"""Random numbers in eval mode: refused by name where the answer depends on them, in every format."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spequant.deploy import lower, mixed_graph
from spequant.deploy.draws import run_without_draws
from support.integer_networks import NEEDS_ONNXRUNTIME, prepared
from support.mixed_networks import NEEDS_ONNXSCRIPT


class Noisy(nn.Module):
    """`noise` behind the first layer, in a module of its own."""

    def __init__(self, noise):
        super().__init__()
        self.first, self.noise, self.last = nn.Linear(6, 8), Noise(noise), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.noise(self.first(x)))


class Noise(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.own = noise

    def forward(self, x):
        return self.own(self, x)


def attended(x, dropout):
    heads = x.reshape(len(x), 1, 2, 4)
    return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=dropout).reshape(x.shape)


ACTIVE = {
    "F.dropout": lambda m, x: F.dropout(x, 0.5),
    "rarely": lambda m, x: F.dropout(x, 1e-4),
    "torch.dropout": lambda m, x: torch.dropout(x, 0.5, True),
    "dropout1d": lambda m, x: F.dropout1d(x.unsqueeze(0), 0.5).squeeze(0),
    "alpha": lambda m, x: F.alpha_dropout(x, 0.5, True),
    "attention": lambda m, x: attended(x, 0.5),
    "rrelu": lambda m, x: F.rrelu(x, training=True),
    "noise": lambda m, x: x + 0.1 * torch.randn_like(x),
    "shuffled": lambda m, x: x[:, torch.randperm(x.shape[1])],
    "gumbel": lambda m, x: F.gumbel_softmax(x),
}
INACTIVE = {
    "training": lambda m, x: F.dropout(x, 0.5, training=m.training),
    "none": lambda m, x: F.dropout(x, 0.0),
    "attention": lambda m, x: attended(x, 0.0),
    "rrelu": lambda m, x: F.rrelu(x),
    "unread": lambda m, x: (torch.rand([]), x)[1],
    "overwritten": lambda m, x: x + torch.empty(8).uniform_().zero_(),
}


def model_with(noise):
    """Prepared without `noise`, which is put in then, and an input."""
    x = torch.randn(64, 6)
    model = prepared(Noisy(lambda m, x: x), x)
    model.noise.own = noise
    return model, x


@pytest.mark.parametrize("name", ACTIVE)
def test_what_the_answer_depends_on_is_named(name):
    model, x = model_with(ACTIVE[name])
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"^noise \(\w+\): random numbers .*training=self\.training"):
        run_without_draws(model.train(), x[:1])
    assert model.training and not torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ValueError, match=r"^noise \("):
        lower(model, x[:1])


@pytest.mark.parametrize("name", INACTIVE)
def test_what_it_does_not_depend_on_is_not(name):
    model, x = model_with(INACTIVE[name])
    assert torch.equal(run_without_draws(model, x), model(x))


def test_a_network_that_draws_itself_and_inputs_by_name():
    class Whole(nn.Module):
        def forward(self, a, b):
            return {"sum": F.dropout(a + b), "b": b}

    with pytest.raises(ValueError, match=r"^Whole \(bernoulli\)"):
        run_without_draws(Whole(), {"a": torch.ones(2, 3), "b": torch.ones(2, 3)})


@NEEDS_ONNXRUNTIME
@NEEDS_ONNXSCRIPT
def test_the_mixed_form_asks_too():
    model, x = model_with(ACTIVE["F.dropout"])
    with pytest.raises(ValueError, match=r"^noise \(bernoulli\)"):
        mixed_graph(model, x[:1])
