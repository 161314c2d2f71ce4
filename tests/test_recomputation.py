"""Activation checkpointing: gradients equal those without it, whatever contexts the forward ran in."""

import copy
import functools
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import spequant
from spequant.calibration.batch_norm import batch_norm_mode, batch_norm_untracked
from spequant.methods import BlockReplacement, JointBits, MemberEnsemble, Retrain
from spequant.methods.parts import replaced
from spequant.policies import Fixed, Mix, precision
from spequant.quantizers import LSQ, PACT, SAWB, LSQPlus

X, LABELS = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 5


class Stage(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class Staged(nn.Module):
    """Three stages and a head; `how(stage, x)` runs a stage."""

    def __init__(self, how):
        super().__init__()
        self.stem, self.one, self.two, self.head = Stage(3, 4), Stage(4, 6), Stage(6, 6), nn.Linear(6, 5)
        self.how = how

    def forward(self, x):
        x = self.how(self.two, self.how(self.one, self.stem(x)))
        return self.head(x.mean((2, 3)))


def plainly(stage, x):
    return stage(x)


def nested(stage, x):
    return checkpoint(lambda x: checkpoint(stage, x, use_reentrant=False), x, use_reentrant=False)


HOW = {
    "not reentrant": lambda stage, x: checkpoint(stage, x, use_reentrant=False),
    "reentrant": lambda stage, x: checkpoint(stage, x, use_reentrant=True),
    "sequential": lambda stage, x: checkpoint_sequential(stage, 2, x, use_reentrant=False),
    "nested": nested,
}


@functools.cache
def calibrated(kind):
    torch.manual_seed(1)
    network = Staged(plainly)
    for _ in range(30):
        network(X)  # moves the running statistics of batch norm
    model = spequant.prepare(network, weight=SAWB(2), act=kind(2))
    spequant.calibrate(model, [X], samples=16)
    return model.train()


def prepared(how, kind=PACT):
    model = copy.deepcopy(calibrated(kind))
    model.how = how
    return model


def gradients(model, loss):
    loss.backward()
    assert model.one[0].layer.weight.grad.abs().max() > 1e-4
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def statistics(model):
    return {name: b.clone() for name, b in model.named_buffers() if "running" in name}


METHODS = {
    "joint bits": lambda: JointBits((4, 8)),
    "members": lambda: MemberEnsemble((4, 8)),
    "blocks": lambda: BlockReplacement(float_teacher(), stages=("stem", "one", "two", "head")),
    "speq": lambda: spequant.SPEQ(),
    "retrain": lambda: Retrain(),
}


def float_teacher():
    torch.manual_seed(2)
    return Staged(plainly)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_same_gradients_with_and_without_checkpoints(name, how):
    plain, checkpointed = prepared(plainly), prepared(HOW[how])
    expected = METHODS[name]()(plain, (X, LABELS))
    losses = METHODS[name]()(checkpointed, (X, LABELS))
    assert torch.equal(expected.total, losses.total)
    expected_gradients, actual_gradients = gradients(plain, expected.total), gradients(checkpointed, losses.total)
    assert expected_gradients.keys() == actual_gradients.keys()
    for parameter, gradient in expected_gradients.items():
        torch.testing.assert_close(actual_gradients[parameter], gradient, rtol=1e-4, atol=1e-7, msg=parameter)


@pytest.mark.parametrize("how", ["not reentrant", "reentrant"])
def test_only_the_students_pass_updates_running_statistics(how):
    student, joint = prepared(HOW[how]), prepared(HOW[how])
    Retrain()(student, (X, LABELS)).total.backward()
    JointBits((4, 8))(joint, (X, LABELS)).total.backward()
    after = statistics(joint)
    assert all(torch.equal(b, after[name]) for name, b in statistics(student).items())


CONTEXTS = {
    "precision": lambda m: precision(m, Fixed(8)),
    "mixed precision": lambda m: precision(m, Mix(), seed=3),
    "statistics": lambda m: batch_norm_mode(m, "eval"),
    "untracked": lambda m: batch_norm_untracked(m),
    "replaced": lambda m: replaced(m, {"two": float_teacher().two}),
    "none": lambda m: nullcontext(),
}


CASES = [(name, how, PACT) for name in CONTEXTS for how in HOW]
CASES += [("precision", "not reentrant", kind) for kind in (LSQ, LSQPlus)]


@pytest.mark.parametrize(("name", "how", "kind"), CASES)
def test_backward_outside_a_context_recomputes_inside_it(name, how, kind):
    results = []
    for way in (plainly, HOW[how]):
        model = prepared(way, kind)
        with CONTEXTS[name](model):
            loss = nn.functional.cross_entropy(model(X), LABELS)
        results.append(gradients(model, loss))
    assert results[0].keys() == results[1].keys()
    for parameter, gradient in results[0].items():
        torch.testing.assert_close(results[1][parameter], gradient, rtol=1e-4, atol=1e-7, msg=parameter)


def test_backward_inside_another_context_recomputes_in_the_one_of_the_forward():
    results = []
    for way in (plainly, HOW["not reentrant"]):
        model = prepared(way)
        with precision(model, Fixed(8)):
            loss = nn.functional.cross_entropy(model(X), LABELS)
        with precision(model, Fixed(4)):
            results.append(gradients(model, loss))
            assert model.two[0].act_quantizer.levels == 16
        assert model.two[0].act_quantizer.levels == 4
    for parameter, gradient in results[0].items():
        torch.testing.assert_close(results[1][parameter], gradient, rtol=1e-4, atol=1e-7, msg=parameter)


def test_checkpoints_outside_any_context_are_torchs_own():
    with precision(prepared(plainly), Fixed(8)):
        pass
    weight = torch.randn(4, 4, requires_grad=True)
    x = torch.randn(2, 4)
    for reentrant in (False, True):
        weight.grad = None
        checkpoint(lambda x, w: torch.sin(x @ w).sum(), x, weight, use_reentrant=reentrant).backward()
        torch.testing.assert_close(weight.grad, x.T @ torch.cos(x @ weight))


def test_checkpoints_of_networks_of_transformers_recompute_at_the_same_bits():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    network = BertForSequenceClassification(config)
    batch = {"input_ids": torch.randint(20, (8, 6)), "attention_mask": torch.ones(8, 6, dtype=torch.int64)}
    model = spequant.prepare(network, weight=SAWB(2), act=LSQ(2), residual=None)
    spequant.calibrate(model, [batch], samples=8)
    batch["labels"] = torch.arange(8) % 3
    results = []
    for reentrant in (None, False, True):
        other = copy.deepcopy(model).train()
        if reentrant is not None:
            enable = getattr(other, "activation_checkpointing_enable", other.gradient_checkpointing_enable)
            enable({"use_reentrant": reentrant})
        JointBits((4, 8))(other, batch).total.backward()
        results.append({name: p.grad for name, p in other.named_parameters() if p.grad is not None})
    assert max(float(g.abs().max()) for g in results[0].values()) > 1e-3
    for checkpointed in results[1:]:
        for parameter, gradient in checkpointed.items():
            torch.testing.assert_close(results[0][parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)
