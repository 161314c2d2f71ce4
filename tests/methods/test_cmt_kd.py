"""CMT-KD: its total and the fused stages of its teachers against the equation; what learns."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from reference import losses as literal
from spequant.methods import CMTKD
from spequant.methods.parts import rounded
from support.equations import cross_entropy, grads, near, numbers, quantized


def test_the_total_follows_the_equation(model, floating, batch):
    teachers = {bits: quantized(floating, batch, bits) for bits in (4, 8)}
    method = CMTKD(floating, teachers)
    assert method.stages == ("conv1", "layer1", "layer2", "layer3", "linear")
    with torch.no_grad():
        for i, name in enumerate(method.stages):
            method.trained.get_submodule(name).importance.copy_(torch.tensor([0.3 * i, -0.2]))
    fused_teacher, student = copy.deepcopy(method.trained), copy.deepcopy(model)
    maps = {"t": [], "s": []}

    def area(x):
        flat = (x.detach().double() ** 2).mean(1).flatten(1)
        return (flat / flat.norm(dim=1, keepdim=True)).numpy()

    def fused(name):
        def forward(module, args, output):
            weights = literal.softmax(module.importance.detach().double().numpy())
            parts = [copy.deepcopy(s)(args[0]) for s in copy.deepcopy(module).stages]
            if name != "linear":
                parts = [rounded(p, b) for p, b in zip(parts, (4, 8), strict=True)]
                maps["t"].append(area(output))
            expected = sum(w * p for w, p in zip(weights.tolist(), parts, strict=True))
            torch.testing.assert_close(output, expected)

        return forward

    for name in method.stages:
        fused_teacher.get_submodule(name).register_forward_hook(fused(name))
        if name != "linear":
            student.get_submodule(name).register_forward_hook(lambda m, a, y: maps["s"].append(area(y)))
    z_t, z_s = numbers(fused_teacher(batch[0])), numbers(student(batch[0]))
    features = np.mean([((a - b) ** 2).mean() for a, b in zip(maps["s"], maps["t"], strict=True)])
    losses = method(model, batch)
    expected = cross_entropy(z_s, batch[1]) + cross_entropy(z_t, batch[1]) + 100 * features
    near(losses.total, expected + 0.5 * (literal.kl(z_s, z_t, 1.0) + literal.kl(z_t, z_s, 1.0)))
    assert features > 1e-6
    losses.total.backward()
    learns = {n for n, p in method.trained.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {f"{s}.importance" for s in method.stages[:-1]} <= learns  # the heads, both at 8 bits, are still equal
    assert not any(any(grads(t)) for t in teachers.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: CMTKD(f, {1: f}), "teachers' bits is 1.* 2 to 8"),
        (lambda f: CMTKD(f, {}), "teachers is empty"),
        (lambda f: CMTKD(nn.Sequential(nn.Linear(2, 2)), {4: f}), "stages 0; expected 3"),
        (lambda f: CMTKD(f, {4: f}, stages=["conv1", "fc"]), "no module 'fc'"),
    ],
)
def test_bad_settings_are_named(make, message, floating):
    with pytest.raises(ValueError, match=message):
        make(floating)
