"""GSLR: its total against the equation while the share of the soft loss falls."""

import pytest

from reference import losses as literal
from spequant.methods import GSLR
from support.equations import cross_entropy, grads, logits, near


def test_the_total_follows_the_equation(model, floating, batch):
    method = GSLR(floating, steps=4, weight=0.8)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=False)
    hard, soft = cross_entropy(z_s, batch[1]), literal.kl(z_s, z_t, 2.0)
    for w in (0.8, 0.6, 0.4, 0.2, 0.0, 0.0):
        losses = method(model, batch)
        near(losses.total, (1 - w) * hard + w * soft)
    losses.total.backward()
    assert all(grads(model)) and not any(grads(method.teacher))


def test_bad_settings_are_named(floating):
    with pytest.raises(ValueError, match=r"weight is 1\.5"):
        GSLR(floating, steps=9, weight=1.5)
