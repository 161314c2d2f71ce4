"""SQAKD: its total against the equation, without labels."""

import pytest

from reference import losses as literal
from spequant.methods import SQAKD
from support.equations import grads, logits, near


def test_the_total_follows_the_equation_and_reads_no_labels(model, floating, batch):
    method = SQAKD(floating)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=False)
    losses = method(model, (batch[0],))
    near(losses.total, literal.kl(z_s, z_t, 4.0))
    assert float(losses.task) == 0
    losses.total.backward()
    assert all(grads(model)) and not any(grads(method.teacher))


def test_bad_settings_are_named(floating):
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        SQAKD(floating, temperature=0.0)
