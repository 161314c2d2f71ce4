"""`export_onnx`: a verified file in one call, or none."""

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import engines, export_onnx
from support.integer_networks import NEEDS_ONNXRUNTIME, prepared, small

pytestmark = NEEDS_ONNXRUNTIME


def test_other_answers_are_refused_and_leave_no_file(tmp_path, monkeypatch):
    x = torch.randn(64, 1, 8, 8)
    model = prepared(small(), x)
    assert spequant.export_onnx(model, tmp_path / "net.onnx", [x]).agreement == 1
    right = engines.onnxruntime

    def rolled(source):
        run = right(source)
        return lambda feed: [out if out.dtype == np.uint8 else np.roll(out, 1, 1) for out in run(feed)]

    with monkeypatch.context() as patch:
        patch.setattr(engines, "onnxruntime", rolled)
        with pytest.raises(ValueError, match=r"another arg-max .* 6\d of 64 images"):
            export_onnx(model, tmp_path / "wrong.onnx", [x])
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    with pytest.raises(ValueError, match="images hold no sample"):
        export_onnx(model, tmp_path / "wrong.onnx", [])
    with pytest.raises(ValueError, match=r"images have 3 dimensions; .* expected 4"):
        export_onnx(model, tmp_path / "wrong.onnx", [x[:, 0].byte()], preprocessing=((0.5,), (0.5,)))
    with pytest.raises(ValueError, match=r"images are .* expected uint8"):
        export_onnx(model, tmp_path / "wrong.onnx", [x], preprocessing=((0.5,), (0.5,)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.again(torch.relu(self.again(torch.relu(self.first(x)))))


def test_of_a_layer_that_is_called_twice_the_calls_are_not_told_apart(tmp_path):
    x = torch.randn(64, 6)
    parity = export_onnx(prepared(Twice(), x), tmp_path / "net.onnx", [x, x[:7], x[:1]])
    assert parity.images == 72 and not any(c.twin for c in parity.codes)
    assert {c.name.split()[0]: c.torch for c in parity.codes}["first"] is None


X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 10
FORMS = {
    "tensors": ([X], False),
    "alone in a tuple": ([(X,)], False),
    "with labels": ([(X, LABELS)], True),
    "with labels and numbers": ([(X, LABELS, torch.arange(8))], True),
    "as a list": ([[X, LABELS]], True),
    "with other targets": ([(X, torch.randn(8, 4))], False),
    "with masks": ([(X, torch.zeros(8, 8, 8, dtype=torch.int64))], False),
    "arrays": ([(X.numpy(), LABELS.numpy())], True),
    "small integers as labels": ([(X, LABELS.to(torch.uint8))], True),
    "an empty batch between": ([X[:0], X, (X[:0], LABELS[:0])], False),
    "with a graph": ([X.clone().requires_grad_()], False),
    "in double precision": ([X.double()], False),
    "made one by one": ((part for part in X.split(3)), False),
}


@pytest.fixture(scope="module")
def network():
    return prepared(small(), torch.randn(64, 1, 8, 8))


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form_verify(form, network, tmp_path):
    images, labelled = FORMS[form]
    parity = export_onnx(network, tmp_path / "net.onnx", images)
    assert parity.images == 8 and parity.agreement == 1 and bool(parity.labelled) == labelled


@pytest.mark.parametrize("images", [["text"], [None], [()], [3.0], [torch.tensor(1.0)], [(np.float32(1),)]])
def test_what_holds_no_samples_is_refused(images, network, tmp_path):
    with pytest.raises(ValueError, match="images holds"):
        export_onnx(network, tmp_path / "net.onnx", images)
    assert not list(tmp_path.iterdir())
