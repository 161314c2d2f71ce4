"""The ensemble of members: its total against the equation; masked classes."""

import numpy as np
import pytest
import torch

import spequant
from reference import losses as literal
from spequant.methods import MemberEnsemble
from spequant.policies import LowBit
from support.equations import at, cross_entropy, logits, near


def test_the_total_follows_the_equation(model, batch):
    method = MemberEnsemble((3, 8), temperature=2.0, weight=0.5)
    z_l, z = logits(model, batch, train=True), [at(model, batch, LowBit(b)) for b in (3, 8)]
    score = np.stack([(z_l * m).sum(-1) for m in z], -1) / np.sqrt(10)
    attention = literal.softmax(score)
    ensemble = sum(attention[:, i : i + 1] * m for i, m in enumerate(z))
    losses = method(model, batch)
    members_task = np.mean([cross_entropy(m, batch[1]) for m in z])
    near(losses.distill, literal.kl(z_l, ensemble, 2.0))
    near(losses.total, cross_entropy(z_l, batch[1]) + members_task + 0.5 * literal.kl(z_l, ensemble, 2.0))


def test_masked_classes_when_one_member_has_all_the_attention(model):
    """The attention is 1 and 0 here, and 0 times -inf would be NaN."""
    leader = torch.tensor([[300.0, 1.0, -torch.inf]])
    outputs = iter([leader, leader + 2.0, torch.tensor([[-300.0, 0.0, -torch.inf]])])

    class Fixed(spequant.Classification):
        def logits(self, model, batch):
            return next(outputs)

    losses = MemberEnsemble((3, 8), task=Fixed())(model, (None, torch.tensor([0])))
    assert losses.total.isfinite()
    near(losses.distill, 0.0)  # the ensemble is the first member, which equals the leader up to a constant


@pytest.mark.parametrize(("widths", "message"), [((), "widths is empty"), ((9,), "widths is 9")])
def test_bad_settings_are_named(widths, message):
    with pytest.raises(ValueError, match=message):
        MemberEnsemble(widths)
