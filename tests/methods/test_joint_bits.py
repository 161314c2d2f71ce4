"""Joint bits: the total against the equation, with widths above and below the home width."""

import numpy as np
import pytest

from reference import losses as literal
from spequant.methods import JointBits
from spequant.policies import LowBit
from support.equations import at, cross_entropy, logits, near, quantized


def test_the_total_follows_the_equation(model, batch):
    method = JointBits((3, 8), temperature=2.0, weight=0.5)
    z = [logits(model, batch, train=True), at(model, batch, LowBit(3)), at(model, batch, LowBit(8))]
    losses = method(model, batch)
    labels = np.mean([cross_entropy(m, batch[1]) for m in z])
    pull = np.mean([literal.kl(m, z[2], 2.0) for m in z[:2]])
    near(losses.total, labels + 0.5 * pull)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_widths_below_the_home_width(floating, batch):
    model = quantized(floating, batch, 4)
    z = [logits(model, batch, train=True), at(model, batch, LowBit(2)), at(model, batch, LowBit(3))]
    losses = JointBits((2, 3, 4))(model, batch)  # 4 bits run once, and are the teacher
    labels = np.mean([cross_entropy(m, batch[1]) for m in z])
    near(losses.distill, np.mean([literal.kl(m, z[0], 1.0) for m in z[1:]]))
    near(losses.total, labels + losses.distill.item())


def test_bad_settings_are_named(floating, batch):
    with pytest.raises(ValueError, match="no activation quantizer"):
        JointBits()(floating, batch)
    with pytest.raises(ValueError, match=r"widths is \(8, 4\)"):
        JointBits((8, 4))
