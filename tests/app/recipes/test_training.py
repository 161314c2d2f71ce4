"""Where a recipe trains: devices by name, batches that do not divide. What its other fields refuse: test_recipe.py."""

import pytest
import torch

from spequant.app.recipes.training import Training, check_device, device_named


def test_the_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_named("auto") == torch.device("cuda") and device_named("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_cpu_is_always_there(name):
    check_device(name, "device")


@pytest.mark.parametrize(("name", "named"), [("gpu", "device is 'gpu'; .* cuda:N"), ("cuda", "finds no GPU")])
def test_a_device_that_is_not_there_is_refused(name, named, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=named):
        check_device(name, "device")


def test_a_batch_that_does_not_split_is_refused():
    Training(batch_size=16, accumulate=4).check_split(2)
    said = r"train\.batch_size is 12 and train\.accumulate 4, on 2 process.*--train\.batch-size 16,"
    with pytest.raises(ValueError, match=said):
        Training(batch_size=12, accumulate=4).check_split(2)


def test_the_split_is_checked_at_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr("spequant.app.recipes.training.world", lambda: 2)
    with pytest.raises(ValueError, match="on 2 process"):
        Training(batch_size=12, accumulate=4, device="cpu").start(tmp_path)
