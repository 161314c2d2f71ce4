"""How many samples a batch of any form holds."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from spequant.calibration.batches import check_batches, cloned, run_model, samples_in

IMAGES = [torch.rand(3, 8, 9 + i) for i in range(16)]
X = torch.rand(16, 4)

BATCHES = {
    "a tensor": (X, 16),
    "inputs and labels": ((X, torch.zeros(16)), 16),
    "a list of both": ([X, torch.zeros(16)], 16),
    "three": ((X, torch.zeros(16), torch.arange(16)), 16),
    "a tuple of one": ((X,), 16),
    "a dict": ({"x": X, "labels": torch.zeros(16)}, 16),
    "images of many sizes and their boxes": ((IMAGES, [{} for _ in IMAGES]), 16),
    "images of one size": (([torch.rand(3, 8, 8)] * 16, None), 16),
    "one image": (([torch.rand(1, 8, 8)], None), 1),
    "a dict of images": ({"pixel_values": IMAGES}, 16),
    "sequences of many lengths": (([torch.rand(i + 1, 5) for i in range(16)], None), 16),
    "two inputs": (((X, torch.rand(16, 6)), torch.zeros(16)), 16),
    "two images per sample": ([[torch.rand(16, 3, 8, 8), torch.rand(16, 3, 8, 8)], torch.zeros(16)], 16),
    "none": (X[:0], 0),
    "an empty list": ([], 0),
    "a number before": ((torch.tensor(3.0), X), 16),
    "text": ("text", None),
    "a list of text": (["text"], None),
}


@pytest.mark.parametrize("case", BATCHES)
def test_samples_are_counted(case):
    batch, count = BATCHES[case]
    assert samples_in(batch) == count


def test_a_batch_may_be_a_list_of_samples_where_the_caller_runs_it():
    assert samples_in(IMAGES, inputs_first=False) == 16
    assert samples_in([torch.rand(3, 8, 8)] * 16, inputs_first=False) == 16
    assert samples_in([{"image": image} for image in IMAGES], inputs_first=False) == 16
    assert samples_in((X, torch.zeros(16)), inputs_first=False) == 16


def test_a_model_is_called_with_the_inputs():
    model = nn.Linear(4, 2)
    for batch in (X, (X, 1), [X], {"input": X}):
        assert torch.equal(run_model(model, batch), model(X))


@pytest.mark.parametrize("batch", [X, {"x": X}, TensorDataset(X)])
def test_a_single_batch_is_refused_where_several_are_expected(batch):
    with pytest.raises(ValueError, match=f"data is a {type(batch).__name__}"):
        check_batches(batch, "data")


def test_tensors_and_mappings_of_tensors_are_copied():
    x = torch.zeros(2)
    one, named = cloned(x), cloned({"a": x})
    one += 1
    named["a"] += 2
    assert x.tolist() == [0, 0]
