"""The state of training: the average of the weights, and snapshots, which fit only the same network."""

from dataclasses import replace

import pytest
import torch

import spequant
from spequant.models import CifarResNet
from spequant.quantizers import PACT, SAWB
from spequant.train import TrainingState, make_accelerator, make_optimizer, make_schedule, parameter_groups, train_step
from support.equations import calibrated, small_batch, small_network


def state_of(network, bits=2, **settings):
    model = calibrated(spequant.prepare(network, weight=SAWB(bits), act=PACT(bits)), small_batch())
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=0.05, weight_decay=0))
    return TrainingState(model, spequant.SPEQ(), optimizer, make_schedule("cosine", optimizer, 20), **settings)


def test_an_average_of_the_weights_is_the_result():
    state = state_of(small_network(), ema=0.75)
    assert state.result is state.ema.module and state.result is not state.model
    averaged = None
    for n in range(1, 31):
        train_step(state, small_batch(), make_accelerator())
        decay = min(0.75, (1 + n) / (10 + n))  # .75 from the 26th step on
        now = [p.detach().clone() for p in state.model.parameters()]
        averaged = now if n == 1 else [decay * a + (1 - decay) * b for a, b in zip(averaged, now, strict=True)]
    for a, b in zip(averaged, state.result.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"ema is 1\.5"):
        state_of(small_network(), ema=1.5)


def test_training_from_a_snapshot_with_an_average_ends_the_same():
    batches = [small_batch() for _ in range(4)]
    first, second = (state_of(small_network(), ema=0.9) for _ in range(2))
    for i, batch in enumerate(batches):
        if i == 2:
            snapshot = first.capture()
        train_step(first, batch, make_accelerator())
    second.restore(snapshot)
    assert second.step == 2 and second.method.step == 2
    for batch in batches[2:]:
        train_step(second, batch, make_accelerator())
    for ours, other in ((first.model, second.model), (first.ema.module, second.ema.module)):
        theirs = other.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in ours.state_dict().items())
    assert [g["lr"] for g in first.optimizer.param_groups] == [g["lr"] for g in second.optimizer.param_groups]


def test_a_snapshot_of_another_network_is_refused():
    state = state_of(small_network())
    train_step(state, small_batch(), make_accelerator())
    snapshot = state.capture()
    assert any(name.endswith("momentum_buffer") for name in snapshot.part("optimizer"))
    state_of(small_network()).restore(snapshot)
    with pytest.raises(ValueError, match=r"a quantizer of 2 bits, .*3"):
        state_of(small_network(), 3).restore(snapshot)
    with pytest.raises(ValueError, match=r"model\.conv1\.layer\.weight is float32 of shape \(4, 3, 3, 3\); expected"):
        state_of(CifarResNet(1, widths=(8, 8, 16))).restore(snapshot)
    with pytest.raises(ValueError, match=r"model\.layer1\.1.*is missing; expected"):
        state_of(CifarResNet(2, widths=(4, 8, 16))).restore(snapshot)
    with pytest.raises(ValueError, match=r"model\.other .*was found"):
        state.restore(replace(snapshot, tensors={**snapshot.tensors, "model.other": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"optimizer\.conv1\.layer\.weight\.momentum_buffer has shape \(1,\)"):
        cut = {"optimizer.conv1.layer.weight.momentum_buffer": torch.zeros(1)}
        state.restore(replace(snapshot, tensors={**snapshot.tensors, **cut}))


def test_a_schedule_over_more_steps_than_before_keeps_its_own_length():
    first = state_of(small_network())
    train_step(first, small_batch(), make_accelerator())
    longer = state_of(small_network())
    longer.schedule = make_schedule("cosine", longer.optimizer, 40)
    longer = TrainingState(longer.model, longer.method, longer.optimizer, longer.schedule)
    longer.restore(first.capture())
    assert longer.schedule.state_dict()["T_max"] == 40 and longer.schedule.last_epoch == 1
