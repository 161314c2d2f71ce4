"""Bin regularization: its term against the literal sum over bins, its gradient, and when it begins."""

import numpy as np
import pytest
import torch

import spequant
from reference.regularization import bin_regularization
from spequant.layers import weight_quantizers
from spequant.methods import BinRegularization
from spequant.methods.bin_regularization import bin_errors
from spequant.methods.parts import float_weights
from spequant.quantizers import LSQ, SAWB, DoReFa
from support.equations import cross_entropy, logits, near, numbers
from support.quantizing import tensors


def levels_of(quantizer, w):
    low, high = (float(end.detach()) for end in quantizer.span(w))
    return np.linspace(low, high, quantizer.level_count())


@pytest.mark.parametrize("quantizer", [SAWB(2), SAWB(4), LSQ(3, signed=True, of_weight=True)])
def test_the_term_and_its_gradient(quantizer):
    _, leaf, _ = tensors(scale=0.1)
    quantizer.fit(leaf.detach(), lambda q, x: x.abs().amax().reshape(q.shape) * 0.7)
    loss = bin_errors(leaf, quantizer)
    levels, codes = levels_of(quantizer, leaf), numbers(quantizer.encode(leaf.detach()))
    near(loss, bin_regularization(numbers(leaf), codes, levels))
    loss.backward()
    counts = np.bincount(codes.astype(int).flatten(), minlength=len(levels))
    target = 2 * (numbers(leaf) - levels[codes.astype(int)]) / counts[codes.astype(int)]
    np.testing.assert_allclose(numbers(leaf.grad), target, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in quantizer.parameters())


def test_the_total_follows_the_equation_after_the_warm_up(model, batch):
    method, z = BinRegularization(steps=4, weight=0.5, warm_up=0.25), logits(model, batch, train=True)
    term = sum(float(bin_errors(w, q).detach()) for w, q in float_weights(model))
    assert len(float_weights(model)) == len(weight_quantizers(model)) > 5
    near(method(model, batch).total, cross_entropy(z, batch[1]))
    losses = method(model, batch)
    near(losses.total, cross_entropy(z, batch[1]) + 0.5 * term)
    assert method.step == 2 and float(losses.distill) == 0 and term > 0


def test_weights_on_their_levels_have_no_term():
    quantizer = SAWB(2)
    w = torch.tensor([[0.5, -0.5, 0.5, -0.5]])
    near(bin_errors(w, quantizer), 0.0)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"weight": -1.0}, "weight is -1"), ({"warm_up": 2.0}, "warm_up is 2"), ({"steps": 0}, "steps")],
)
def test_bad_settings_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        BinRegularization(**{"steps": 1, **options})


def test_weights_that_are_rescaled_are_refused(floating, batch):
    model = spequant.prepare(floating, weight=DoReFa(2), act=LSQ(2))
    with pytest.raises(ValueError, match=r"conv1.*DoReFa"):
        float_weights(model)
    with pytest.raises(ValueError, match="no quantized weight"):
        float_weights(floating)
