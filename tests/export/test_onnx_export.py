"""`export_onnx`: a verified file in one call, or none."""

import pytest
import torch
from torch import nn

import spequant
from spequant.export import export_onnx
from support.integer_networks import NEEDS_ONNXRUNTIME, prepared, small

pytestmark = NEEDS_ONNXRUNTIME


def test_other_answers_are_refused_and_leave_no_file(tmp_path):
    x = torch.randn(64, 1, 8, 8)
    model = prepared(small(), x)
    assert spequant.export_onnx(model, tmp_path / "net.onnx", [x]).agreement == 1
    first, hooked = True, model.linear

    def once(module, args, output):  # the comparison's forward is another one than the tracing's
        nonlocal first
        first = False
        return output.roll(1, 1)

    handle = hooked.register_forward_hook(once)
    with pytest.raises(ValueError, match=r"another arg-max .* 64 of 64 images"):
        export_onnx(model, tmp_path / "wrong.onnx", [x])
    handle.remove()
    assert not first and [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    with pytest.raises(ValueError, match="images is empty"):
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
