"""Processes, wrappers and memory: what `make_accelerator` and `wrap` make, and refuse; what a process keeps."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from spequant.train import Compiled, keep_freed_memory, make_accelerator, wrap

KEEP = "SPEQUANT_KEEP_FREED_MEMORY"


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


class Library:
    """glibc, as far as it is called."""

    def __init__(self):
        self.calls: list[tuple[int, int]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return 1


@pytest.mark.parametrize(("value", "kept"), [(None, True), ("1", True), ("0", False)])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(value, kept, monkeypatch):
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.delenv(KEEP, raising=False)
    if value is not None:
        monkeypatch.setenv(KEEP, value)
    assert keep_freed_memory() is kept and len(library.calls) == 2 * kept


@pytest.mark.parametrize("value", ["", "no", "2"])
def test_a_switch_that_is_neither_on_nor_off_is_named(value, monkeypatch):
    monkeypatch.setenv(KEEP, value)
    with pytest.raises(ValueError, match=f"{KEEP} is '{value}'; expected 0 or 1"):
        keep_freed_memory()


def test_another_c_library_keeps_nothing(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert keep_freed_memory() is False


FAULTS = """
import resource, torch
from spequant.train import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given = faults()
assert keep_freed_memory() is True
faults()  # the heap grows once
print(given, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_kept_memory_is_not_asked_for_again():
    """In a process of its own: of 64 MiB, 16,384 pages of 4 KiB or 32 of 2 MiB."""
    environment = {name: value for name, value in os.environ.items() if name != KEEP}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, env=environment, check=True)
    before, after = map(int, done.stdout.split())
    assert before >= 320 and after < before / 10
