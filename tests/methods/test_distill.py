"""Distillation from a separate teacher, with and without SPEQ, against the equations; what learns."""

import pytest

from reference import losses as literal
from spequant import SPEQ, Distill
from spequant.methods import SPEQDistill
from spequant.methods.losses import cosine
from spequant.policies import Stochastic
from support.equations import at, cross_entropy, grads, logits, near, same, small_network, statistics


@pytest.mark.parametrize(("loss", "twin"), [({}, literal.kl), ({"loss": cosine}, literal.cosine)])
def test_the_total_follows_the_equation(loss, twin, model, floating, batch):
    method = Distill(floating, temperature=2, weight=0.5, **loss)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=False)
    losses = method(model, batch)
    near(losses.distill, twin(z_s, z_t, 2.0))
    near(losses.total, cross_entropy(z_s, batch[1]) + 0.5 * twin(z_s, z_t, 2.0))


def test_a_separate_teacher_is_a_frozen_copy(model, floating, batch):
    method = Distill(floating)
    assert not method.teacher.training and method.teacher is not floating and floating.training
    before = statistics(method.teacher)
    method(model, batch).total.backward()
    assert not any(grads(method.teacher)) and same(before, statistics(method.teacher)) and all(grads(model))


def test_both_teachers_together(model, batch):
    other = small_network()
    z_s, z_t = logits(model, batch, train=True), logits(other, batch, train=False)
    z_speq = at(model, batch, Stochastic())
    both = SPEQDistill(SPEQ(weight=2.0), Distill(other, weight=0.5))(model, batch)
    distill = 2 * literal.cosine(z_s, z_speq, 1) + 0.5 * literal.kl(z_s, z_t, 1)
    near(both.distill, distill)
    near(both.total, cross_entropy(z_s, batch[1]) + distill)


@pytest.mark.parametrize(("options", "message"), [({"temperature": 0}, "temperature is 0"), ({"weight": -1}, "weight")])
def test_bad_settings_are_named(options, message, floating):
    with pytest.raises(ValueError, match=message):
        Distill(floating, **options)
