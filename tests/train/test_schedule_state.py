"""Torch schedules of every kind go on from a snapshot."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

import spequant
from spequant.train import TrainingState
from support.equations import small_network

SCHEDULES = {
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 12),
    "steps": lambda o: schedules.MultiStepLR(o, [3, 6]),
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=13),
    "warm restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 5),
    "cyclic": lambda o: schedules.CyclicLR(o, 0.01, 0.1, 5),
    "function": lambda o: schedules.LambdaLR(o, lambda n: 1 / (n + 1)),
    "product": lambda o: schedules.MultiplicativeLR(o, lambda n: 0.9),
    "chained": lambda o: schedules.ChainedScheduler(
        [schedules.LinearLR(o, 0.1, 1, 3), schedules.ExponentialLR(o, 0.9)]
    ),
    "one after the other": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, 1, 3), schedules.LambdaLR(o, lambda n: 1 / (n + 1))], [3]
    ),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_goes_on_from_a_snapshot(make):
    """Through JSON, as a checkpoint stores it; in a new process, and in the same one, at a later step."""

    def state():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        return TrainingState(small_network(), spequant.Retrain(), optimizer, make(optimizer))

    def rates(state, steps):
        return [(state.schedule.step(), dict(state.optimizer.param_groups[0], params=None))[1] for _ in range(steps)]

    first = state()
    first.optimizer.step()
    rates(first, 5)
    snapshot = first.capture()
    snapshot = replace(snapshot, numbers=json.loads(json.dumps(snapshot.numbers)))
    expected = rates(first, 8)
    for other in (state(), first):
        other.restore(snapshot)
        other.optimizer.step()
        assert rates(other, 8) == expected
