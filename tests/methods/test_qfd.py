"""QFD: its total against the equation, on the teacher's rounded feature."""

import copy

import numpy as np
import pytest

from spequant.methods import QFD
from support.equations import cross_entropy, grads, near, numbers


def test_the_total_follows_the_equation(model, floating, batch):
    method = QFD(floating, bits=3)
    features = {}
    for name, network, train in (("s", model, True), ("t", floating, False)):
        network = copy.deepcopy(network).train(train)
        network.linear.register_forward_pre_hook(lambda m, args, name=name: features.update({name: args[0]}))
        features[name + "z"] = network(batch[0])
    f_t = numbers(features["t"])
    step = f_t.max() / 7  # average pooled, after a relu: no value below zero
    target = np.round(f_t / step) * step
    distill = ((numbers(features["s"]) - target) ** 2).mean()
    losses = method(model, batch)
    near(losses.distill, distill)
    near(losses.total, cross_entropy(numbers(features["sz"]), batch[1]) + 0.5 * distill)
    losses.total.backward()
    assert not any(grads(method.teacher)) and not model.linear._forward_pre_hooks


@pytest.mark.parametrize(("bits", "message"), [(9, "bits is 9"), (1, "bits is 1.* 2 to 8"), (None, "bits is None")])
def test_bad_settings_are_named(bits, message, floating):
    with pytest.raises(ValueError, match=message):
        QFD(floating, bits=bits)
