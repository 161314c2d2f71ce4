"""Retrain: the loss on the labels alone, hard or soft, and outputs of which it cannot be taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spequant import Retrain
from support.equations import cross_entropy, logits, near


def test_the_total_is_the_equations(model, batch):
    z = logits(model, batch, train=True)
    losses = Retrain()(model, batch)
    near(losses.total, cross_entropy(z, batch[1]))
    assert float(losses.distill) == 0 and torch.equal(losses.total, losses.task) and not losses.logits.requires_grad


def test_soft_targets(model, batch):
    soft = F.one_hot(batch[1], 10).float()
    hard, mixed = Retrain()(model, batch).task, Retrain()(model, (batch[0], soft)).task
    torch.testing.assert_close(hard, mixed)


def test_a_model_that_returns_no_tensor_asks_for_a_task():
    class Wrapped(nn.Linear):
        def forward(self, x):
            return {"scores": super().forward(x)}

    with pytest.raises(TypeError, match=r"dict with scores.* output is None"):
        Retrain()(Wrapped(4, 2), (torch.rand(3, 4), torch.zeros(3, dtype=torch.long)))


def test_dense_logits_are_refused_where_classes_are_last():
    model = nn.Conv2d(3, 5, 1)
    with pytest.raises(ValueError, match=r"logits of shape \(2, 5, 4, 4\); expected \(batch, classes\)"):
        Retrain()(model, (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)))
