"""Where a recipe trains: devices by name. What its other fields refuse: test_recipe.py."""

import pytest
import torch

from spequant.app.recipes.training import check_device, device_named


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
