"""Small modules: scikit-learn's digits; import of torchvision and timm, and their random generators."""

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


def draw():
    return random.random(), np.random.random(), float(torch.rand(()))


def test_seeded_draws_depend_on_the_numbers_and_global_states_are_restored():
    random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    draws = []
    for numbers in ((3, 1, 4), (3, 1, 4), (3, 1, 5)):
        with seeded(*numbers):
            draws.append(draw())
    with pytest.raises(KeyError), seeded(0):
        raise KeyError(draw())
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())
    assert draws[0] == draws[1] and not set(draws[0]) & set(draws[2])


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"timm\.data is not installed: .*'spequant\[vision\]'"):
        vision("timm.data")
