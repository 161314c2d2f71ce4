"""A loss that is not finite: when it is noticed, which tensors are named, and what noticing costs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import spequant
from spequant.train import (
    TrainingState,
    fit,
    make_accelerator,
)
from spequant.train.guard import FiniteGuard
from spequant.train.loop import train_step
from support.breaking import STEPS, Breaks, a_state, gone, gradient_of_a_range


@pytest.mark.slow
def test_tensors_that_are_not_finite_are_named_at_once():
    error, *_ = gone(Breaks(28, gradient_of_a_range), checkpoint_every=4)
    assert "after step 28 these are not: the range of layer2.0.conv1: lower" in error.message
    assert (error.step, error.finite, error.noticed) == (None, 24, 28)
    error, *_ = gone(Breaks(28, gradient_of_a_range), checkpoint_every=35)
    assert (
        "step 29 of the run); after step 35 these are not: the range of " in error.message
        and " more: " in error.message
    )
    assert (error.step, error.finite, error.noticed) == (29, 20, 35)


class Reads(TorchDispatchMode):
    """Counts operations that read the value of a tensor, for which Python waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_reads_nothing_from_the_device():
    state, batches = a_state(spequant.SPEQ())
    accelerator = make_accelerator()
    guard = FiniteGuard(state, STEPS)
    epoch = batches(0, 0)
    train_step(state, next(epoch), accelerator)
    batch = next(epoch)
    with Reads() as reads:
        guard.note(train_step(state, batch, accelerator)[0])
    assert reads.count == 0
    with Reads() as reads:
        guard.check()
    assert reads.count > 0


@pytest.mark.slow
def test_the_state_is_never_copied(monkeypatch):
    calls = []
    monkeypatch.setattr(TrainingState, "capture", lambda state: calls.append(state.step))
    state, batches = a_state(spequant.Retrain())
    fit(state, batches, epochs=3, steps=STEPS)  # 60 steps: beyond a check
    assert state.step == 3 * STEPS and not calls
