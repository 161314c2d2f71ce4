"""Several labels per sample: probabilities of their own, on the labels and to a teacher."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spequant.methods.losses import cosine, kl
from spequant.methods.tasks import MultiLabel, distilled, pooled
from spequant.train import evaluate
from support.task_networks import Stages


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_losses_are_those_of_two_probabilities_per_label(temperature):
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = (sigmoid(z.numpy() / temperature) for z in (teacher, student))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    lengths = np.sqrt((p**2 + (1 - p) ** 2) * (q**2 + (1 - q) ** 2))
    angle = 1 - (p * q + (1 - p) * (1 - q)) / lengths
    for loss, expected in ((kl, divergence), (cosine, angle)):
        found = distilled(MultiLabel(), loss, student, teacher, None, temperature)
        assert float(found) == pytest.approx(temperature**2 * expected.mean(), rel=1e-4)


def test_the_probabilities_of_passes_are_averaged():
    passes = [torch.randn(3, 2) for _ in range(4)]
    mean = torch.stack([(z / 2).sigmoid() for z in passes]).mean(0)
    torch.testing.assert_close((pooled(MultiLabel(), passes, 2.0) / 2).sigmoid(), mean)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_labels_of_each_type_give_the_binary_cross_entropy(dtype):
    logits, labels = torch.randn(6, 3), torch.randint(0, 2, (6, 3))
    expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    assert MultiLabel().loss(logits, (None, labels.to(dtype))) == expected
    weighted = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=torch.tensor([1.0, 2.0, 3.0]))
    assert MultiLabel(positive_weight=[1.0, 2.0, 3.0]).loss(logits, (None, labels)) == weighted


@pytest.mark.parametrize("output", [(6,), (6, 1)])
@pytest.mark.parametrize("labels", [(6,), (6, 1)])
def test_one_logit_for_yes_or_no(output, labels):
    task, answer, labels = MultiLabel(), torch.randn(output), torch.randint(0, 2, labels)
    logits = task.logits(lambda x: answer, (None, labels))
    expected = F.binary_cross_entropy_with_logits(answer.flatten(), labels.flatten().float())
    torch.testing.assert_close(task.loss(logits, (None, labels)), expected)


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.tensor([0, 1, 2, 0, 0, 0]), r"int64 of shape \(6,\)"),
        (torch.full((6, 3), 2), "from 2 to 2"),
        (torch.full((6, 3), -0.5), "from -0.5 to -0.5"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, named):
    with pytest.raises(ValueError, match=named):
        MultiLabel().loss(torch.randn(6, 3), (None, labels))


@pytest.mark.parametrize("weight", [0.0, [1.0, -1.0]])
def test_weights_are_above_0_and_one_per_label(weight):
    with pytest.raises(ValueError, match="positive_weight is"):
        MultiLabel(positive_weight=weight)
    with pytest.raises(ValueError, match="positive_weight has"):
        MultiLabel(positive_weight=[1.0, 2.0]).loss(torch.randn(6, 3), (None, torch.zeros(6, 3)))


def test_figures_are_those_over_all_batches():
    network, x, y = Stages(3), torch.randn(12, 3, 8, 8), torch.randint(0, 2, (12, 3))
    found = evaluate(network, [(x[:5], y[:5]), (x[5:], y[5:])], MultiLabel())
    answers, labels = (network.eval()(x) > 0).numpy(), y.bool().numpy()
    f1 = [
        2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(answers.T, labels.T, strict=True) if a.any() or b.any()
    ]
    right = 100 * (answers == labels).all(1).mean()
    assert found.figures == pytest.approx({"f1": 100 * np.mean(f1), "accuracy": right})
    assert found.accuracy == pytest.approx(right)
