"""A class per token: padding and parts of words have no effect, on the labels or to a teacher."""

import pytest
import torch
import torch.nn.functional as F

from spequant.methods.losses import cosine, kl
from spequant.methods.tasks import TokenClassification, distilled
from spequant.train import evaluate
from support.task_networks import kind


@pytest.mark.parametrize("loss", [kl, cosine])
def test_tokens_that_are_left_out_have_no_effect(loss):
    labels = torch.tensor([[0, 2, -100], [1, -100, -100]])
    batch, keep, task = {"labels": labels}, labels != -100, TokenClassification()
    student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    torch.testing.assert_close(task.loss(student, batch), F.cross_entropy(student[keep], labels[keep]))
    value = distilled(task, loss, student, teacher, batch, 2.0)
    torch.testing.assert_close(value, loss(student[keep], teacher[keep], 2.0))
    value.backward()
    assert not student.grad[~keep].any() and student.grad[keep].any()


def test_without_labels_padding_is_left_out():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    value = distilled(TokenClassification(), kl, student, teacher, {"attention_mask": mask}, 1.0)
    torch.testing.assert_close(value, kl(student[mask > 0], teacher[mask > 0], 1.0))


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.zeros(2, dtype=torch.int64), r"\(2,\); expected int64 \(2, 3\)"),
        (torch.zeros(2, 3), "float32"),
        (torch.full((2, 3), 4), "value 4; expected 0 to 3"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, named):
    with pytest.raises(ValueError, match=named):
        TokenClassification().loss(torch.randn(2, 3, 4), {"labels": labels})


def test_logits_of_one_class_per_sample_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\); expected \(batch, length, classes\)"):
        TokenClassification().logits(lambda x: torch.randn(2, 4), (None,))


def test_accuracy_and_f1_are_those_over_tokens():
    subject = kind("token-classification")
    found = evaluate(subject.network, [subject.batch], subject.task)
    labels = subject.batch["labels"]
    answers = subject.task.logits(subject.network.eval(), subject.batch).argmax(-1)[labels != -100]
    truth = labels[labels != -100]
    pairs = [((answers == c), (truth == c)) for c in range(3)]
    f1 = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs if a.any() or b.any()]
    expected = {"accuracy": 100 * float((answers == truth).float().mean()), "f1": 100 * float(torch.stack(f1).mean())}
    assert found.figures == pytest.approx(expected, rel=1e-5)
