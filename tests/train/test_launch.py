"""Processes and wrappers: what `make_accelerator` and `wrap` make, and refuse."""

import pytest
import torch
from torch import nn

from spequant.train import Compiled, make_accelerator, wrap


def test_an_accelerator_is_made_anew_with_other_settings():
    plain = make_accelerator(device="cpu")
    assert (plain.mixed_precision, plain.gradient_accumulation_steps, plain.device.type) == ("no", 1, "cpu")
    parts = make_accelerator("bf16", accumulate=4)
    assert (parts.mixed_precision, parts.gradient_accumulation_steps) == ("bf16", 4)
    assert make_accelerator().mixed_precision == "no"


@pytest.mark.parametrize(
    ("settings", "message"), [({"accumulate": 0}, "accumulate is 0"), ({"tracker": "tensorbord"}, "tensorbord")]
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_accelerator(**settings)


def test_alone_a_network_is_called_itself_or_compiled():
    model = nn.Linear(3, 2)
    assert wrap(model) is model
    compiled = wrap(model, compile=True)
    assert isinstance(compiled, Compiled) and compiled.model is model
    assert [id(p) for p in compiled.parameters()] == [id(p) for p in model.parameters()]
    assert not torch.distributed.is_initialized()
