"""Regression: losses on targets and to a teacher's values against their formulas, shapes, figures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spequant.methods.losses import cosine, cross_entropy, kl
from spequant.methods.tasks import Regression, distilled, pooled
from spequant.train import evaluate
from support.task_networks import Stages


def values(*shape):
    return 3 + 2 * torch.randn(*shape)


def density(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("loss", [kl, cosine, cross_entropy])
def test_the_losses_are_those_of_two_gaussians(loss, temperature):
    student, teacher = values(1, 1), values(1, 1)
    task, deviation = Regression(scale=1.5), 1.5
    found = float(distilled(task, loss, student, teacher, None, temperature))
    x, step = np.linspace(-60, 60, 400_001, retstep=True)
    p, q = (density(x, float(z), temperature * deviation**2) for z in (teacher, student))
    if loss is cosine:
        expected = 1 - (p * q).sum() / np.sqrt((p**2).sum() * (q**2).sum())
    else:
        inside = p > 1e-200
        expected = (p[inside] * np.log(p[inside] / np.maximum(q[inside], 1e-300))).sum() * step
    assert found == pytest.approx(temperature**2 * expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("shape", [(7, 2), (3, 2, 4, 5)])
def test_the_deviation_is_the_teachers_per_target(shape):
    student, teacher = values(*shape), values(*shape) * torch.tensor([1.0, 50.0]).view(1, 2, *[1] * (len(shape) - 2))
    found = distilled(Regression(), kl, student, teacher, None, 1.0)
    s, t = (x.double().numpy().swapaxes(0, 1).reshape(2, -1) for x in (student, teacher))
    expected = np.mean((((s - t) / t.std(1, keepdims=True)) ** 2) / 2)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    scaled = distilled(Regression(), kl, student * 7, teacher * 7, None, 1.0)  # the unit does not matter
    torch.testing.assert_close(scaled, found)


@pytest.mark.parametrize("teacher", [torch.zeros(1, 1), torch.full((4, 1), 2000.0), torch.zeros(4, 3)])
def test_constant_values_of_a_teacher_give_a_finite_loss(teacher):
    student = (teacher + 0.1).requires_grad_()
    loss = distilled(Regression(), kl, student, teacher, None, 1.0)
    loss.backward()
    assert loss.isfinite() and loss > 0 and student.grad.isfinite().all()


def test_values_far_from_zero_keep_their_own_deviation():
    teacher = 2000 + torch.tensor([[-1.0], [1.0]])
    torch.testing.assert_close(distilled(Regression(), kl, teacher + 1, teacher, None, 1.0), torch.tensor(0.5))


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        ((6,), (6,)),
        ((6, 1), (6,)),
        ((6,), (6, 1)),
        ((6, 2), (6, 2)),
        ((6, 4, 4), (6, 1, 4, 4)),
        ((6, 1, 4, 4), (6, 4, 4)),
    ],
)
def test_the_axis_of_one_target_may_be_missing(output, targets):
    task, answer, target = Regression(), torch.randn(output), torch.randn(targets)
    logits = task.logits(lambda x: answer, (None, target))
    expected = F.mse_loss(answer.flatten(), target.flatten())
    torch.testing.assert_close(task.loss(logits, (None, target)), expected)


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (torch.randn(6, 3), r"float32 of shape \(6, 3\)"),
        (torch.randn(5), r"shape \(5,\)"),
        (torch.ones(6, 2, dtype=torch.bool), "bool"),
    ],
)
def test_targets_that_do_not_fit_are_named(targets, named):
    with pytest.raises(ValueError, match=named):
        Regression().loss(torch.randn(6, 2), (None, targets))


@pytest.mark.parametrize("scale", [0.0, (1.0, -1.0)])
def test_scales_that_are_no_deviations_are_refused(scale):
    with pytest.raises(ValueError, match="scale is"):
        Regression(scale=scale)
    with pytest.raises(ValueError, match="scale has 3"):
        distilled(Regression(scale=(1.0, 2.0, 3.0)), kl, torch.randn(4, 2), torch.randn(4, 2), None, 1.0)


def test_a_loss_of_ones_own_gets_the_values():
    student, teacher = torch.randn(4, 2), torch.randn(4, 2)
    own = lambda s, t, temperature: temperature * F.huber_loss(s, t)  # noqa: E731
    assert distilled(Regression(), own, student, teacher, None, 2.0) == 2 * F.huber_loss(student, teacher)


def test_passes_are_averaged():
    passes = [torch.randn(4, 2) for _ in range(3)]
    torch.testing.assert_close(pooled(Regression(), passes, 3.0), torch.stack(passes).mean(0))


def test_figures_are_those_over_all_batches():
    network, x, y = Stages(2), torch.randn(10, 3, 8, 8), torch.randn(10, 2)
    found = evaluate(network, [(x[:7], y[:7]), (x[7:], y[7:])], Regression())
    answers, targets = network.eval()(x).detach().double().numpy(), y.double().numpy()
    r2 = 1 - ((answers - targets) ** 2).sum(0) / ((targets - targets.mean(0)) ** 2).sum(0)
    expected = {"mean_absolute_error": np.abs(answers - targets).mean(), "r2": 100 * r2.mean()}
    assert found.figures == pytest.approx(expected, rel=1e-5) and np.isnan(found.accuracy)
    assert found.loss == pytest.approx(((answers - targets) ** 2).mean(), rel=1e-5)
    assert "r2" not in evaluate(network, [(x, torch.ones(10, 2))], Regression()).figures  # a constant has no variance
