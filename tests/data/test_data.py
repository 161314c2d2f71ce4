"""The room's small modules: scikit-learn's digits; torchvision and timm, and the random numbers that they draw."""

import random
import sys

import numpy as np
import pytest
import torch

from spequant.data import load_digits
from spequant.data.vision import seeded, vision


def test_digits():
    train, test = load_digits()
    assert len(train) == 1297 and len(test) == 500 and train.images.shape[1:] == (1, 8, 8)
    assert train.images.max() == 255
    pixels = train.images.float() / 255
    assert abs(pixels.mean() - train.mean[0]) < 0.01 and abs(pixels.std() - train.std[0]) < 0.01


def drawn():
    return random.random(), np.random.random(), float(torch.rand(()))


def test_what_is_drawn_inside_follows_from_the_numbers_and_nothing_does_outside():
    random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = []
    for numbers in ((3, 1, 4), (3, 1, 4), (3, 1, 5)):
        with seeded(*numbers):
            found.append(drawn())
    with pytest.raises(KeyError), seeded(0):
        raise KeyError(drawn())
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())
    assert found[0] == found[1] and not set(found[0]) & set(found[2])


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"timm\.data is not installed: .*'spequant\[vision\]'"):
        vision("timm.data")
