"""Oscillation dampening: its term and gradient against the literal sum, and how its weight grows."""

import numpy as np
import pytest
import torch

from reference.regularization import dampening as literal
from reference.regularization import dampening_weight
from spequant.methods import Dampening
from spequant.methods.dampening import dampening
from spequant.methods.parts import float_weights
from spequant.quantizers import LSQ, SAWB
from support.equations import cross_entropy, logits, near, numbers


@pytest.mark.parametrize("quantizer", [SAWB(2), LSQ(3, signed=True, of_weight=True)])
def test_the_term_and_its_gradient(quantizer):
    leaf = (torch.randn(6, 50) * 0.1).requires_grad_()
    quantizer.fit(leaf.detach(), lambda q, x: x.abs().amax().reshape(q.shape) * 0.6)
    low, high = (float(end.detach()) for end in quantizer.span(leaf))
    loss = dampening(leaf, quantizer)
    near(loss, literal(numbers(leaf), np.linspace(low, high, quantizer.level_count())))
    loss.backward()
    w, rounded = numbers(leaf), numbers(quantizer(leaf.detach()))
    inside = (w > low) & (w < high)
    np.testing.assert_allclose(numbers(leaf.grad), 2 * (w - rounded) * inside * len(w) / w.size, rtol=1e-4, atol=1e-7)
    assert (~inside).any() and all(p.grad is None for p in quantizer.parameters())


def test_the_total_follows_the_equation(model, batch):
    method, z = Dampening(steps=4, weight=0.5, start=0.25), logits(model, batch, train=True)
    term = sum(float(dampening(w, q).detach()) for w, q in float_weights(model))
    for call in range(6):
        weight = dampening_weight(0.5, 0.25, min(call, 4), 4)
        assert method.present_weight == pytest.approx(weight)
        losses = method(model, batch)
        near(losses.total, cross_entropy(z, batch[1]) + weight * term)
    assert float(losses.distill) == 0 and term > 0


@pytest.mark.parametrize(
    ("options", "named"), [({"weight": -1.0}, "weight is -1"), ({"start": 1.0}, "start is 1"), ({"steps": 0}, "steps")]
)
def test_bad_settings_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        Dampening(**{"steps": 1, **options})
