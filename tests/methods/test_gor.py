"""GoR: its total against the equation, and weights that learn."""

import math

import pytest
import torch

from reference import losses as literal
from spequant.methods import GoR
from support.equations import cross_entropy, grads, logits, near


def test_the_total_follows_the_equation(model, floating, batch):
    method = GoR(floating, temperature=3.0)
    with torch.no_grad():
        method.trained.logs.copy_(torch.tensor([0.4, -0.3]))
    task = cross_entropy(logits(model, batch, train=True), batch[1])
    distill = literal.kl(logits(model, batch, train=True), logits(floating, batch, train=False), 3.0)
    losses = method(model, batch)
    near(losses.task, task)
    near(losses.distill, distill)
    near(losses.total, math.exp(-0.4) * task + 0.2 + math.exp(0.3) * distill - 0.15)
    losses.total.backward()
    assert not any(grads(method.teacher)) and all(grads(model))
    a, b = method.trained.logs.grad
    near(a, 0.5 - math.exp(-0.4) * task)
    near(b, 0.5 - math.exp(0.3) * distill)


def test_weights_are_those_of_plain_distillation_at_first_and_rest_at_the_inverse_of_twice_the_loss(
    model, floating, batch
):
    method = GoR(floating)
    first = method(model, batch)
    near(first.total, float((first.task + first.distill).detach()))
    with torch.no_grad():
        method.trained.logs.copy_((2 * torch.stack([first.task, first.distill])).log())
    method(model, batch).total.backward()
    torch.testing.assert_close(method.trained.logs.grad, torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [GoR.Settings, lambda **given: GoR(torch.nn.Linear(2, 2), **given)])
def test_a_bad_temperature_is_named(make):
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        make(temperature=0.0)
