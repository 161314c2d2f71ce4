"""LSQ: values and gradients against its literal twin, also in training; the paper's start."""

import pytest
import torch

from reference import quantizers as literal
from spequant.quantizers import LSQ, PACT, least_squares
from spequant.quantizers.lsq import paper_start
from support.quantizing import BITS, close, ready, tensors


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("kind", ["weight", "unsigned", "signed"])
@pytest.mark.parametrize("bits", BITS)
def test_values_and_gradients(bits, kind, power_of_two):
    if kind == "signed" and bits == 1:
        return
    q = ready(LSQ(bits, signed=kind != "unsigned", of_weight=kind == "weight", power_of_two=power_of_two))
    qn, qp = q.codes()
    assert (qn, qp) == {
        "unsigned": (0, 2**bits - 1),
    }.get(kind, (0.5, 0.5) if bits == 1 else (2 ** (bits - 1), 2 ** (bits - 1) - 1))
    x, leaf, grad = tensors(1200)
    leaf = leaf.detach().reshape(6, 200).requires_grad_()
    with torch.no_grad():
        q.step.fill_(1.6 / max(1, qp))
    q(leaf).backward(grad.reshape(6, 200))
    twin = literal.power_of_two_lsq if power_of_two else literal.lsq
    expected, to_x, to_s = twin(
        x, grad.double().numpy(), float(q.step.detach()), qn, qp, 1200 if kind == "weight" else 200
    )
    close(q(leaf).flatten(), expected)
    close(leaf.grad.flatten(), to_x)
    close(q.step.grad, to_s, atol=1e-4)


class LiteralLSQ(torch.nn.Module):
    """LSQ with a trained step as in the paper, by detached rounding."""

    def __init__(self, step, qn, qp, elements):
        super().__init__()
        self.step, self.qn, self.qp, self.g = torch.nn.Parameter(step.clone()), qn, qp, (elements * qp) ** -0.5

    def forward(self, v):
        s = self.step * self.g + (self.step * (1 - self.g)).detach()
        clipped = torch.clamp(v / s, -self.qn, self.qp)
        return s * (clipped + (clipped.round() - clipped).detach())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_it_trains_like_its_literal_twin(optimizer):
    v = torch.randn(400)
    q = LSQ(2).like(of_weight=True)
    q.fit(3 * v, least_squares)  # a step that is too large, so that training has to shrink it
    start = float(q.step.detach())
    twin = LiteralLSQ(q.step.detach(), *q.codes(), 400)
    steps = []
    for module in (q, twin):
        sgd = optimizer is torch.optim.SGD
        options = {"lr": 1e-3, "momentum": 0.9} if sgd else {"lr": 1e-2, "weight_decay": 0.0}
        opt = optimizer(module.parameters(), **options)
        for _ in range(50):
            opt.zero_grad()
            (module(v) - v).square().sum().backward()
            opt.step()
        steps.append(float(module.step.detach()))
    assert steps[0] == pytest.approx(steps[1], rel=1e-4) and steps[0] < 0.9 * start


def test_the_papers_start():
    v = torch.randn(4000)
    q = LSQ(2, signed=True)
    q.fit(v, paper_start)
    assert float(q.step.detach()) == pytest.approx(2 * float(v.abs().mean()), rel=1e-5)  # Qp = 1
    with pytest.raises(TypeError, match="LSQ's own rule"):
        PACT(2, signed=False).fit(v, paper_start)


def test_gradients_of_steps_per_channel_are_scaled_by_the_elements_of_a_channel():
    w = torch.randn(4, 3, 3, 3)
    per_channel = LSQ(2, of_weight=True, shape=(4, 1, 1, 1))
    per_channel.fit(w, least_squares)
    per_channel(w).square().sum().backward()
    for channel in range(4):
        q = LSQ(2, of_weight=True)
        q.fit(w[channel : channel + 1], least_squares)
        q(w[channel : channel + 1]).square().sum().backward()
        assert float(per_channel.step.grad[channel]) == pytest.approx(float(q.step.grad), rel=1e-5)


@pytest.mark.parametrize("signed", [False, True])
def test_it_rounds_ties_in_its_gradient_as_in_its_values(signed):
    q = ready(LSQ(3, signed=signed))
    with torch.no_grad():
        q.step.fill_(0.25)
    x = torch.arange(-12, 20).reshape(1, 32) * 0.125  # levels, ties, both ends, and values beyond them
    grad = torch.randn(1, 32)
    q(x).backward(grad)
    y, _, to_s = literal.lsq(x.double().numpy(), grad.double().numpy(), 0.25, *q.codes(), 32)
    close(q(x), y)
    close(q.step.grad, to_s)
