"""Apprentice: its total against the equation, and what learns in its schemes."""

import numpy as np
import pytest

from reference import losses as literal
from spequant.methods import Apprentice
from spequant.methods.base import trained_by
from support.equations import cross_entropy, grads, logits, near


@pytest.mark.parametrize("joint", [False, True])
def test_the_total_follows_the_equation(joint, model, floating, batch):
    method = Apprentice(floating, joint=joint)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=joint)
    losses = method(model, batch)
    soft = -(literal.softmax(z_t) * np.log(literal.softmax(z_s))).sum(-1).mean()
    expected = 0.5 * cross_entropy(z_s, batch[1]) + 0.5 * soft + joint * cross_entropy(z_t, batch[1])
    near(losses.total, expected)
    near(losses.distill, soft)
    losses.total.backward()
    assert all(grads(method.teacher)) if joint else not any(grads(method.teacher))
    assert (trained_by(method) is None) is not joint and not any(grads(floating))


def test_the_teacher_learns_nothing_from_the_student(model, floating, batch):
    method = Apprentice(floating, joint=True, teacher_weight=0.0)
    method(model, batch).total.backward()
    assert not any(grads(method.teacher))


def test_bad_settings_are_named(floating):
    with pytest.raises(ValueError, match=r"soft_weight is -1\.0"):
        Apprentice(floating, soft_weight=-1.0)
