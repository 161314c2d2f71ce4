"""Tasks: logits out of what a model returns, losses and hits of labels, hard and soft."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spequant.tasks import Classification, SpanExtraction


class Returns(nn.Module):
    """Gives back `found`, whatever it is given."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, *args, **kwargs):
        return self.found


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])


@pytest.mark.parametrize(
    ("found", "output"),
    [
        (LOGITS, None),
        ({"logits": LOGITS}, None),
        ({"scores": LOGITS}, "scores"),
        ((torch.zeros(1), LOGITS), 1),
        (torch.return_types.max((LOGITS, LOGITS)), "values"),
    ],
)
def test_where_the_logits_are(found, output):
    assert Classification(output).logits(Returns(found), (torch.zeros(2, 1), None)) is LOGITS


@pytest.mark.parametrize(
    ("found", "output", "error", "message"),
    [
        ({"scores": LOGITS}, None, TypeError, "output is None"),
        ((LOGITS,), 3, TypeError, "output is 3"),
        (torch.zeros(2, 3, 4), None, ValueError, r"shape \(2, 3, 4\)"),
    ],
)
def test_what_holds_none_is_named(found, output, error, message):
    with pytest.raises(error, match=message):
        Classification(output).logits(Returns(found), (torch.zeros(2, 1), None))


def test_hard_and_soft_labels():
    task, hard, soft = Classification(), torch.tensor([0, 1]), torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    assert int(task.hits(LOGITS, (None, hard))) == 1 and int(task.hits(LOGITS, {"labels": soft})) == 2
    torch.testing.assert_close(task.loss(LOGITS, (None, hard)), -F.log_softmax(LOGITS, 1)[[0, 1], hard].mean())
    torch.testing.assert_close(task.loss(LOGITS, (None, soft)), -(soft * F.log_softmax(LOGITS, 1)).sum(1).mean())


def test_spans_leave_padding_out():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = {"attention_mask": mask, "start_positions": torch.tensor([0, 2]), "end_positions": torch.tensor([1, 9])}
    starts, ends = torch.randn(2, 3), torch.randn(2, 3)
    task = SpanExtraction()
    logits = task.logits(Returns({"start_logits": starts, "end_logits": ends}), batch)
    assert logits.shape == (2, 2, 3) and torch.isinf(logits[0, :, 2]).all()
    p = logits.log_softmax(-1)
    expected = -(p[0, 0, 0] + p[0, 1, 1] + p[1, 0, 2]) / 3  # the end at 9 is past the sequence
    torch.testing.assert_close(task.loss(logits, batch), expected)
    with pytest.raises(TypeError, match="start_logits"):
        task.logits(Returns(LOGITS), batch)
