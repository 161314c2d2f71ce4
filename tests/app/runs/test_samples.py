"""Samples out of an .npz: one input or several by name, classes or values; what does not fit a file is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spequant.app.runs.samples import Samples, read_samples
from spequant.deploy import Loaded

IDS = np.arange(12).reshape(4, 3)


def written(folder, **arrays):
    np.savez(folder / "test.npz", **arrays)
    return folder / "test.npz"


def test_inputs_by_name_and_values(tmp_path):
    path = written(tmp_path, input_ids=IDS, attention_mask=IDS > 3, labels=np.array([0.5, 1, 2, 3]))
    samples = read_samples(path)
    assert samples.named and len(samples) == 4 and samples.shape is None and samples.labels.dtype == torch.float32
    part = samples.part(slice(1, 3))
    inputs = part.normalise(part.images)
    assert {name: x.dtype for name, x in inputs.items()} == dict.fromkeys(inputs, torch.int64)
    assert inputs["input_ids"].tolist() == IDS[1:3].tolist() and part.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"labels": np.arange(4)}, r"test\.npz holds the arrays none; .*inputs, .*input_ids"),
        ({"inputs": IDS, "input_ids": IDS}, "holds the arrays inputs, input_ids"),
        ({"input_ids": IDS, "attention_mask": IDS[:2]}, "input_ids has 4 .*attention_mask has 2"),
        ({"input_ids": np.array(["a"])}, "input_ids are <U1"),
        ({"inputs": IDS, "labels": np.zeros((4, 2, 2))}, r"labels are float64 of shape \(4, 2, 2\)"),
        ({"inputs": IDS, "labels": np.arange(3)}, r"labels are int64 of shape \(3,\); .*\(4,\)"),
    ],
)
def test_arrays_that_do_not_belong_together_are_named(arrays, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        read_samples(written(tmp_path, **arrays))


class Words(nn.Module):
    def forward(self, input_ids=None, attention_mask=None, **_): ...


class Two(nn.Module):
    def forward(self, left, right, scale=1.0): ...


class Any(nn.Module):
    def forward(self, *args): ...


def fits(loaded, *names):
    images = torch.zeros(2, 3) if names == ("inputs",) else {name: torch.zeros(2, 3) for name in names}
    Samples(images, None, Path("test.npz")).check_names(loaded)


def graph(*names):
    return Loaded(Path("net.onnx"), "mixed", ("onnxruntime",), inputs=dict.fromkeys(names, (None, None)))


def packed(network):
    return Loaded(Path("net.packed"), "packed", model=network)


def test_names_that_fit():
    for loaded, names in (
        (graph("input"), ["inputs"]),
        (graph("input_ids"), ["inputs"]),
        (graph("input_ids", "attention_mask"), ["attention_mask", "input_ids"]),
        (packed(nn.Linear(3, 2)), ["inputs"]),
        (packed(nn.Linear(3, 2)), ["input"]),
        (packed(Words()), ["inputs"]),
        (packed(Words()), ["input_ids", "token_type_ids"]),
        (packed(Two()), ["left", "right"]),
        (packed(Any()), ["inputs"]),
        (packed(None), ["input_ids"]),
    ):
        fits(loaded, *names)


@pytest.mark.parametrize(
    ("loaded", "names", "named"),
    [
        (graph("input"), ["images"], r"test\.npz holds images; net\.onnx takes input: .*inputs and labels"),
        (graph("input_ids", "attention_mask"), ["inputs"], "holds inputs; .* takes input_ids, attention_mask: "),
        (graph("input_ids", "attention_mask"), ["input_ids"], "holds input_ids; .* takes input_ids, attention_mask: "),
        (packed(nn.Linear(3, 2)), ["images"], r"holds images; net\.packed takes input: .*inputs and labels"),
        (packed(Words()), ["images"], "holds images; .* takes attention_mask, input_ids: "),
        (packed(Two()), ["inputs"], "holds inputs; .* takes left, right: "),
        (packed(Two()), ["left", "right", "other"], "holds left, other, right; .* takes left, right: "),
    ],
)
def test_other_names_are_told_with_those_of_the_file(loaded, names, named):
    with pytest.raises(ValueError, match=named):
        fits(loaded, *names)
