"""Detectors of torchvision: their losses, what is distilled at which anchors, their boxes' figures."""

import pytest
import torch
import torch.nn.functional as F

from spequant.methods.losses import kl
from spequant.methods.tasks import Detection, distilled, pooled
from spequant.train import evaluate
from support.task_networks import boxes, detector

KINDS = ["ssd", pytest.param("retinanet", marks=pytest.mark.slow), pytest.param("fcos", marks=pytest.mark.slow)]
KINDS += [pytest.param("faster-rcnn", marks=pytest.mark.slow)]


@pytest.mark.parametrize("which", KINDS)
def test_the_loss_is_the_sum_of_the_detectors_own(which):
    torch.manual_seed(0)
    network, batch, task = detector(which).train(), boxes(), Detection()
    torch.manual_seed(1)  # proposals are sampled
    expected = sum(network(*batch).values())
    torch.manual_seed(1)
    logits = task.logits(network, batch)
    torch.testing.assert_close(task.loss(logits, batch), expected)
    network.eval()
    modes = [module.training for module in network.modules()]
    logits = task.logits(network, batch)
    assert logits.dim() == 3 and task.loss(logits, batch).isfinite()  # evaluation has losses, too
    assert modes == [module.training for module in network.modules()]


@pytest.mark.parametrize("which", KINDS)
def test_a_teacher_equal_to_the_student_teaches_nothing_and_another_does(which):
    torch.manual_seed(0)
    student, batch, task = detector(which).train(), boxes(), Detection(anchors=8)
    teacher = detector(which).eval()
    answers = task.logits(student, batch)
    assert abs(float(distilled(task, kl, answers, answers.detach(), batch, 1.0).detach())) < 1e-6
    loss = distilled(task, kl, answers, task.logits(teacher, batch).detach(), batch, 1.0)
    loss.backward()
    assert loss > 0 and any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_only_the_anchors_where_the_teacher_is_surest_count():
    torch.manual_seed(0)
    task = Detection(anchors=2)
    task.logits(detector("ssd").train(), boxes())  # a detector whose classes are a softmax
    student, teacher = torch.randn(1, 6, 7), torch.randn(1, 6, 7)
    surest = (1 - teacher[0, :, :3].softmax(-1)[:, 0]).topk(2).indices
    s, t = student[:, surest], teacher[:, surest]
    expected = kl(s[..., :3], t[..., :3], 2.0) + F.smooth_l1_loss(s[..., 3:], t[..., 3:])
    torch.testing.assert_close(distilled(task, kl, student, teacher, None, 2.0), expected)
    mean = pooled(task, [student, teacher], 1.0)
    torch.testing.assert_close(
        mean[..., :3].softmax(-1), (student[..., :3].softmax(-1) + teacher[..., :3].softmax(-1)) / 2
    )
    torch.testing.assert_close(mean[..., 3:], (student[..., 3:] + teacher[..., 3:]) / 2)


def test_anchors_of_another_number_are_named():
    with pytest.raises(ValueError, match=r"\(1, 6, 7\), the teacher's \(1, 8, 7\)"):
        distilled(Detection(), kl, torch.randn(1, 6, 7), torch.randn(1, 8, 7), None, 1.0)
    with pytest.raises(ValueError, match="anchors is 0"):
        Detection(anchors=0)


def test_what_is_no_detector_and_no_batch_of_one_is_named():
    with pytest.raises(TypeError, match="Linear; expected a detector"):
        Detection().logits(torch.nn.Linear(3, 3), boxes())
    for batch in ((torch.rand(2, 3, 32, 32), None), {"images": []}, ([torch.rand(3, 32, 32)], [torch.zeros(4)])):
        with pytest.raises(TypeError, match=r"expected \(images, targets\)"):
            Detection().logits(detector("ssd"), batch)
    with pytest.raises(ValueError, match="detached"):
        Detection().loss(torch.zeros(1, 6, 7), boxes())


class Finds(torch.nn.Module):
    """A detector whose answers are `answers`, whatever it sees."""

    def __init__(self, answers):
        super().__init__()
        self.head, self.anchor_generator = torch.nn.Identity(), None
        self.answers, self.weight = answers, torch.nn.Parameter(torch.zeros(1))

    def forward(self, images, targets=None):
        self.head({"cls_logits": torch.zeros(len(images), 2, 3), "bbox_regression": torch.zeros(len(images), 2, 4)})
        return {"loss": self.weight.sum()} if self.training else self.answers


def test_figures_count_boxes_of_the_right_class_that_overlap():
    targets = [
        {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    first = [[0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10]]
    answers = [
        {
            "boxes": torch.tensor(first, dtype=torch.float32),
            "labels": torch.tensor([1, 1, 1, 1]),  # right, a second one, another class, too unsure
            "scores": torch.tensor([0.9, 0.8, 0.9, 0.1]),
        },
        {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.7])},
    ]
    batch = [torch.rand(3, 32, 32)] * 2, targets
    found = evaluate(Finds(answers), [batch], Detection())
    assert found.figures["f1"] == pytest.approx(100 * 2 * 1 / (4 + 2)) and found.samples == 2
