"""Retrain: the loss on hard and soft labels, and outputs and labels that are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant import Retrain
from spequant.methods import allow_float
from spequant.models import resnet8
from spequant.quantizers import PACT, SAWB
from support.equations import cross_entropy, logits, near


def test_the_total_follows_the_equation(model, batch):
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


def test_a_float_network_is_refused_unless_it_is_allowed(batch):
    network = resnet8()
    spequant.prepare(network, weight=SAWB(2), act=PACT(2))  # the result is not kept
    for method in (Retrain(), spequant.Distill(network), spequant.methods.SQAKD(network)):
        with pytest.raises(ValueError, match=r"model = spequant\.prepare\("):
            method(network, batch)
    assert torch.isfinite(Retrain()(allow_float(network), batch).total)


BAD_LABELS = {
    "regression": (torch.randn(4, 1), torch.randn(4, 1), r"logits of shape \(4, 1\)"),
    "one logit": (torch.randn(4, 1), torch.zeros(4, dtype=torch.int64), r"logits of shape \(4, 1\)"),
    "floats of one column": (torch.randn(4, 3), torch.randn(4, 1), r"shape \(4, 1\).*\(4, 3\)"),
    "classes as floats": (torch.randn(4, 3), torch.tensor([0.0, 1, 2, 1]), r"floats of shape \(4,\)"),
    "several labels": (torch.randn(4, 3), torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]), "sum to 1"),
    "no label": (torch.randn(4, 3), torch.zeros(4, 3), "sum to 1"),
    "negative": (torch.randn(4, 3), torch.tensor([[2.0, -1, 0]] * 4), "least value -1"),
    "not a number": (torch.randn(4, 3), torch.full((4, 3), float("nan")), "sum to 1"),
    "several labels as integers": (torch.randn(4, 3), torch.ones(4, 3, dtype=torch.int64), r"shape \(4, 3\)"),
    "several labels as booleans": (torch.randn(4, 3), torch.ones(4, 3, dtype=torch.bool), "torch.bool"),
    "classes in a column": (torch.randn(4, 3), torch.zeros(4, 1, dtype=torch.int64), r"shape \(4, 1\)"),
}


class Constant(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x):
        return self.output


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_are_no_classes_are_refused(case):
    logits, labels, message = BAD_LABELS[case]
    with pytest.raises(ValueError, match=message):
        Retrain()(allow_float(Constant(logits)), (torch.zeros(4, 2), labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_soft_labels_of_any_precision_are_accepted(dtype):
    soft = torch.softmax(torch.randn(64, 1000), 1).to(dtype).float()
    losses = Retrain()(allow_float(Constant(torch.randn(64, 1000))), (torch.zeros(64, 2), soft))
    assert losses.task > 0


def test_dense_logits_are_refused():
    model = nn.Conv2d(3, 5, 1)
    with pytest.raises(ValueError, match=r"logits of shape \(2, 5, 4, 4\); expected \(batch, classes\)"):
        Retrain()(model, (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)))
