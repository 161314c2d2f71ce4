"""A class per pixel: pixels that are left out have no effect, on the labels or to a teacher."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spequant.methods.losses import cosine, kl
from spequant.methods.tasks import Segmentation, distilled
from spequant.train import evaluate
from support.task_networks import Pixels

OUT = 255


def masks(dtype=torch.int64):
    labels = torch.randint(0, 3, (4, 6, 5))
    labels[:, 0], labels[2] = OUT, OUT
    return labels.to(dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_the_loss_on_masks_leaves_pixels_out(dtype):
    logits, labels = torch.randn(4, 3, 6, 5), masks(dtype)
    task = Segmentation()
    found = task.loss(task.logits(lambda x: {"out": logits}, (None, labels)), (None, labels))
    torch.testing.assert_close(found, F.cross_entropy(logits, labels.long(), ignore_index=OUT))


@pytest.mark.parametrize("loss", [kl, cosine])
def test_a_teacher_is_learned_from_at_the_pixels_that_count(loss):
    labels, task = masks(), Segmentation()
    student, teacher = torch.randn(4, 6, 5, 3, requires_grad=True), torch.randn(4, 6, 5, 3)
    value = distilled(task, loss, student, teacher, (None, labels), 2.0)
    expected = loss(student[labels != OUT], teacher[labels != OUT], 2.0)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert not student.grad[labels == OUT].any() and student.grad[labels != OUT].any()
    whole = distilled(task, loss, student, teacher, (None,), 2.0)  # without masks every pixel counts
    torch.testing.assert_close(whole, loss(student.flatten(0, 2), teacher.flatten(0, 2), 2.0))


def test_a_batch_that_is_left_out_whole_has_losses_of_0():
    labels, task = torch.full((2, 4, 4), OUT), Segmentation()
    student = torch.randn(2, 4, 4, 3, requires_grad=True)
    value = task.loss(student, (None, labels)) + distilled(task, kl, student, torch.randn(2, 4, 4, 3), (0, labels), 1.0)
    value.backward()
    assert value == 0 and not student.grad.any()


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.zeros(4, 1, 6, 5, dtype=torch.int64), r"\(4, 1, 6, 5\); expected .*\(4, 6, 5\)"),
        (torch.zeros(4, 12, 10, dtype=torch.int64), "upsample=True"),
        (torch.zeros(4, 6, 5), "float32"),
        (torch.full((4, 6, 5), 3), "value 3; expected 0 to 2"),
        (torch.full((4, 6, 5), -100), "value -100.*255"),
    ],
)
def test_masks_that_do_not_fit_are_named(labels, named):
    task = Segmentation()
    with pytest.raises(ValueError, match=named):
        task.loss(task.logits(lambda x: torch.randn(4, 3, 6, 5), (None, labels)), (None, labels))


def test_logits_are_enlarged_on_request():
    labels, logits = torch.randint(0, 3, (4, 12, 10)), torch.randn(4, 3, 6, 5)
    task = Segmentation(upsample=True)
    larger = task.logits(lambda x: {"logits": logits}, (None, labels))
    expected = F.interpolate(logits, size=(12, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(larger, expected.movedim(1, -1))
    assert task.loss(larger, (None, labels)).isfinite()


@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 6, 5)])
def test_outputs_that_are_no_logits_per_pixel_are_named(shape):
    with pytest.raises(ValueError, match=r"expected \(batch, classes, height, width\)"):
        Segmentation().logits(lambda x: torch.randn(shape), (None,))


def test_figures_are_those_over_all_batches():
    network, x, labels = Pixels(3), torch.randn(4, 3, 6, 5), masks()
    found = evaluate(network, [(x[:3], labels[:3]), (x[3:], labels[3:])], Segmentation())
    answers, truth = network.eval()(x)["out"].argmax(1).numpy(), labels.numpy()
    answers, truth = answers[truth != OUT], truth[truth != OUT]
    shares = [
        ((answers == c) & (truth == c)).sum() / ((answers == c) | (truth == c)).sum()
        for c in range(3)
        if ((answers == c) | (truth == c)).any()
    ]
    expected = {"mean_iou": 100 * np.mean(shares), "pixel_accuracy": 100 * (answers == truth).mean()}
    assert found.figures == pytest.approx(expected)
    with pytest.raises(ValueError, match="left out"):
        evaluate(network, [(x, torch.full_like(labels, OUT))], Segmentation())
