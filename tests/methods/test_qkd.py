"""QKD: its three phases against their equations, and who learns in each."""

import copy

import pytest

from reference import losses as literal
from spequant.methods import QKD
from support.equations import cross_entropy, grads, logits, near


def test_the_totals_of_the_phases_follow_the_equations(model, floating, batch):
    method = QKD(floating, steps=9)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=True)
    hard = cross_entropy(z_s, batch[1])
    seen = []
    for step in range(9):
        method.step = step
        model.zero_grad()
        method.trained.zero_grad()
        state = copy.deepcopy(model.state_dict())
        losses = method(model, batch)
        losses.total.backward()
        model.load_state_dict(state)
        if step < 3:
            near(losses.total, hard)
            assert float(losses.distill) == 0
        elif step < 6:
            both = literal.kl(z_s, z_t, 2.0) + literal.kl(z_t, z_s, 2.0)
            near(losses.total, hard + cross_entropy(z_t, batch[1]) + both)
        seen.append((any(grads(method.trained)), method.trained.training))
    assert seen == [(False, False)] * 3 + [(True, True)] * 3 + [(False, False)] * 3
    z_t = logits(method.trained, batch, train=False)
    near(losses.total, hard + literal.kl(z_s, z_t, 2.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "steps is 0"), ({"steps": 9, "shares": (0.8, 0.4)}, r"shares is \(0\.8, 0\.4\)")],
)
def test_bad_settings_are_named(settings, message, floating):
    with pytest.raises(ValueError, match=message):
        QKD(floating, **settings)
