"""SQuaT: its total against the equation, on features that the student's quantizer rounded."""

import copy

import pytest
from torch import nn

from reference import losses as literal
from reference.quantizers import lsq
from spequant.methods import SQuaT
from spequant.methods.squat import before_head
from support.equations import cross_entropy, grads, near, numbers

LAYER = "layer3.0.conv2"


def test_the_total_follows_the_equation(model, floating, batch):
    method = SQuaT(floating, temperature=3.0, weight=0.5, feature_weight=2.0, label_weight=0.3)
    assert method.layer == LAYER
    inputs, answers = {}, {}
    for name, network, train in (("s", model, True), ("t", floating, False)):
        network = copy.deepcopy(network).train(train)
        hook = network.get_submodule(LAYER).register_forward_pre_hook
        hook(lambda m, args, name=name: inputs.update({name: numbers(args[0])}))
        answers[name] = numbers(network(batch[0]))
    quantizer = model.get_submodule(LAYER).act_quantizer
    step = float(quantizer.bounds(batch[0])[1].detach()) / 3  # unsigned, 2 bits
    student, teacher = (lsq(inputs[name], 0, step, 0, 3, 1)[0] for name in "st")
    divergence = literal.kl(answers["s"], answers["t"], 3.0)
    distill = 0.5 * divergence + 2 * ((student - teacher) ** 2).mean()
    losses = method(model, batch)
    near(losses.distill, distill)
    near(losses.total, 0.3 * cross_entropy(answers["s"], batch[1]) + distill)
    losses.total.backward()
    assert not any(grads(method.teacher)) and all(grads(model))
    assert quantizer.step.grad.abs() > 0


def test_the_teachers_feature_gives_no_gradient(model, floating, batch):
    method = SQuaT(floating, weight=0.0)
    method(model, batch).total.backward()
    feature = model.get_submodule(LAYER).act_quantizer.step.grad.clone()
    assert feature.abs() > 0
    assert model.linear.layer.weight.grad is None or not model.linear.layer.weight.grad.any()  # behind the feature


def test_layers_that_do_not_fit_are_named(model, floating, batch):
    model.get_submodule(LAYER).act_quantizer = None
    with pytest.raises(ValueError, match=rf"layer is '{LAYER}', .*not quantized"):
        SQuaT(floating)(model, batch)
    with pytest.raises(ValueError, match=r"layers \['0'\]; expected two"):
        before_head(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="act_bits is None"):
        SQuaT.Settings().check_student(None, mixed=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"temperature": 0.0}, "temperature is 0"), ({"feature_weight": -1.0}, "feature_weight is -1")],
)
def test_bad_settings_are_named(options, named, floating):
    for make in (SQuaT.Settings, lambda **given: SQuaT(floating, **given)):
        with pytest.raises(ValueError, match=named):
            make(**options)
