"""Tasks: logits in the outputs of models, losses and right answers for labels, spans and padding."""

from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference import losses as literal
from spequant.methods.losses import cosine, kl
from spequant.methods.tasks import Classification, SpanExtraction
from support.transformers_networks import LENGTH, answering, tokens

Named = namedtuple("Named", ["logits", "aux"])


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        (lambda x: {"logits": x, "aux": None}, None),
        (lambda x: Named(x, None), None),
        (lambda x: (x, None), 0),
        (lambda x: {"out": x}, "out"),
    ],
)
def test_logits_are_read_from_the_output_of_a_model(returned, output):
    class Model(nn.Module):
        def forward(self, x):
            return returned(x)

    batch = torch.randn(2, 3), torch.tensor([0, 1])
    assert torch.equal(Classification(output).logits(Model(), batch), batch[0])
    with pytest.raises(TypeError, match=r"output is .*Classification\(output=0\)"):
        Classification("absent" if output != "absent" else 9).logits(Model(), batch)


class Returns(nn.Module):
    """Returns `value`, whatever its inputs are."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, *args, **kwargs):
        return self.value


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])


@pytest.mark.parametrize(
    ("returned", "output", "error", "message"),
    [
        ({"scores": LOGITS}, None, TypeError, "output is None"),
        ((LOGITS,), 3, TypeError, "output is 3"),
        (torch.zeros(2, 3, 4), None, ValueError, r"shape \(2, 3, 4\)"),
    ],
)
def test_outputs_without_logits_are_refused(returned, output, error, message):
    with pytest.raises(error, match=message):
        Classification(output).logits(Returns(returned), (torch.zeros(2, 1), None))


def test_hard_and_soft_labels():
    task, hard, soft = Classification(), torch.tensor([0, 1]), torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    assert int(task.hits(LOGITS, (None, hard))) == 1 and int(task.hits(LOGITS, {"labels": soft})) == 2
    torch.testing.assert_close(task.loss(LOGITS, (None, hard)), -F.log_softmax(LOGITS, 1)[[0, 1], hard].mean())
    torch.testing.assert_close(task.loss(LOGITS, (None, soft)), -(soft * F.log_softmax(LOGITS, 1)).sum(1).mean())


def test_logits_of_spans_are_masked_at_padding():
    network, batch, task = answering(), tokens(), SpanExtraction()
    logits = task.logits(network, batch)
    mask = batch["attention_mask"].bool()
    assert logits.shape == (8, 2, LENGTH) and torch.equal(torch.isinf(logits[:, 0]), ~mask)
    # The loss of transformers has no mask, so that it is compared on a batch without padding.
    unpadded = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
    torch.testing.assert_close(task.loss(task.logits(network, unpadded), unpadded), network(**unpadded).loss)


@pytest.mark.parametrize("loss", [cosine, kl])
def test_distillation_of_spans_equals_the_mean_over_ends_cut_to_their_length(loss):
    mask = tokens()["attention_mask"].bool()[:, None].expand(-1, 2, -1)
    student = torch.randn(8, 2, LENGTH).masked_fill(~mask, float("-inf")).requires_grad_()
    teacher = torch.randn(8, 2, LENGTH).masked_fill(~mask, float("-inf"))
    value = loss(student, teacher, 2.0)
    twin = getattr(literal, loss.__name__)
    parts = [
        twin(s[m].double().numpy()[None], t[m].double().numpy()[None], 2.0)
        for s, t, m in zip(student.detach().flatten(0, 1), teacher.flatten(0, 1), mask.flatten(0, 1), strict=True)
    ]
    assert float(value.detach()) == pytest.approx(float(np.mean(parts)), rel=1e-5)
    value.backward()
    assert torch.isfinite(student.grad).all() and not student.grad[~mask].any()


def test_positions_past_the_end_are_left_out_and_hits_need_both_ends():
    task, logits = SpanExtraction(), torch.zeros(3, 2, 5)
    logits[:, 0, 1] = logits[:, 1, 3] = 4.0
    batch = {"start_positions": torch.tensor([1, 1, 7]), "end_positions": torch.tensor([3, 2, 7])}
    assert int(task.hits(logits, batch)) == 1
    flat = logits[:2].flatten(0, 1)
    torch.testing.assert_close(task.loss(logits, batch), F.cross_entropy(flat, torch.tensor([1, 3, 1, 2])))


def test_a_network_without_start_and_end_logits_is_refused():
    with pytest.raises(TypeError, match=r"Tensor without start_logits.*AutoModelForQuestionAnswering"):
        SpanExtraction().logits(lambda **batch: batch["input_ids"], tokens())


def test_spans_that_are_all_left_out_have_a_loss_of_0():
    logits = torch.randn(3, 2, 5, requires_grad=True)
    outside = {name: torch.full((3,), 9) for name in SpanExtraction.LABELS}
    loss = SpanExtraction().loss(logits, outside)
    loss.backward()
    assert loss == 0 and not logits.grad.any()  # a mean over nothing would be NaN, and all weights with it


@pytest.mark.parametrize("label", [3, -1])
def test_a_class_that_the_network_does_not_have_is_named(label):
    with pytest.raises(ValueError, match=f"value {label}; expected 0 to 2"):
        Classification().loss(LOGITS, (None, torch.tensor([0, label])))
