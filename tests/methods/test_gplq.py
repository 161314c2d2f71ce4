"""GPLQ: float weights and features first, then quantized weights and labels."""

import copy

import pytest
import torch
from torch import nn

import spequant
from spequant.layers import act_quantizers, weight_quantizers
from spequant.methods import GPLQ, gplq
from spequant.quantizers import PACT, MinMax, least_squares
from support.equations import cross_entropy, grads, logits, near, numbers

HEAD = "linear"


def feature_of(network, batch, *, train):
    """The input of the head in a copy, as numbers."""
    seen, network = [], copy.deepcopy(network).train(train)
    network.get_submodule(HEAD).register_forward_pre_hook(lambda m, args: seen.append(numbers(args[0])))
    network(batch[0])
    return seen[0]


def with_float_weights(model):
    """A copy whose weights are float: each quantizer of weights is gone."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if getattr(layer, "weight_quantizer", None) is not None:
            layer.weight_quantizer = None
    return model


def test_activations_learn_first_then_weights_are_quantized(model, floating, batch):
    method = GPLQ(floating, steps=4, share=0.5)
    feature = feature_of(with_float_weights(model), batch, train=True)
    student = numbers(model.get_submodule(HEAD).act_quantizer(torch.from_numpy(feature).float()))
    assert abs(feature - feature_of(model, batch, train=True)).max() > 0.01
    teacher = feature_of(floating, batch, train=False)
    losses = method(model, batch)
    near(losses.distill, ((student - teacher) ** 2).mean())
    near(losses.total, ((student - teacher) ** 2).mean())
    losses.total.backward()
    assert not any(grads(method.teacher))
    reached = {name for (name, _), yes in zip(model.named_parameters(), grads(model), strict=True) if yes}
    aside = {n for n, _ in model.named_parameters() if n.startswith(f"{HEAD}.layer.") or "weight_quantizer" in n}
    assert {n for n, p in model.named_parameters() if p.grad is None} == aside  # no decay without a gradient
    assert {n for n, _ in model.named_parameters()} - reached == aside
    method(model, batch)
    task = cross_entropy(logits(model, batch, train=True), batch[1])
    losses = method(model, batch)
    near(losses.task, task)
    near(losses.total, task)
    assert losses.distill == 0


def test_clips_of_weights_are_not_decayed_while_weights_are_float(floating, batch):
    model = spequant.prepare(floating, weight=PACT(4), act=PACT(4))
    spequant.calibrate(model, [batch[0]], samples=len(batch[0]))
    method = GPLQ(floating, steps=4, share=0.5)
    losses = method(model, batch)
    losses.total.backward()
    clips = {name: q.clip for name, q in weight_quantizers(model).items() if hasattr(q, "clip")}
    assert clips and all(clip.grad is None for clip in clips.values())
    acts = sum(
        0.5 * q.decay * float(q.clip.detach().square().sum())
        for q in act_quantizers(model).values()
        if hasattr(q, "decay")
    )
    near(losses.total, float(losses.distill.detach()) + acts)


def test_weights_get_their_ranges_when_the_float_calls_end(model, floating, batch):
    method = GPLQ(floating, steps=3)
    before = {name: q.step.clone() for name, q in weight_quantizers(model).items()}
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(3)
    for _ in range(2):
        method(model, batch)
        assert all(torch.equal(q.step, before[name]) for name, q in weight_quantizers(model).items())
    method(model, batch)
    expected = copy.deepcopy(model)
    spequant.calibrate(expected, [batch], samples=len(batch[0]), rule=least_squares)
    for name, q in weight_quantizers(model).items():
        near(q.step, float(weight_quantizers(expected)[name].step.detach()))
    assert not any(torch.equal(q.step, before[name]) for name, q in weight_quantizers(model).items() if "conv" in name)


def test_a_range_of_the_data_is_left_to_itself(floating, batch):
    model = spequant.prepare(floating, weight=MinMax(4), act=MinMax(4))
    spequant.calibrate(model, [batch], samples=len(batch[0]))
    before = [[end.clone() for end in q.bounds(torch.ones(8, 2))] for q in weight_quantizers(model).values()]
    GPLQ(floating, steps=1)(model.train(), batch).total.backward()
    after = [q.bounds(torch.ones(8, 2)) for q in weight_quantizers(model).values()]
    assert all(torch.equal(*ends) for pair in zip(before, after, strict=True) for ends in zip(*pair, strict=True))
    assert all(q.calibrated for q in weight_quantizers(model).values()) and model.conv1.layer.weight.grad.any()


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_bad_settings_are_named(share, floating):
    for make in (GPLQ.Settings, lambda **given: GPLQ(floating, steps=4, **given)):
        with pytest.raises(ValueError, match="share is"):
            make(share=share)
    with pytest.raises(ValueError, match="steps is 0"):
        GPLQ(floating, steps=0)
    with pytest.raises(ValueError, match="act_bits is None"):
        GPLQ.Settings().check_student(None, mixed=False)


def test_several_processes_are_refused(floating, monkeypatch):
    monkeypatch.setattr(gplq, "world", lambda: 2)
    with pytest.raises(ValueError, match="there are 2 processes"):
        GPLQ(floating, steps=4)
