"""Training on the digits that goes wrong: a state, a method that breaks at a step, and what is left then."""

import pytest
import torch

import spequant
from spequant.data import eval_batches, load_digits, train_batches
from spequant.layers import act_quantizers
from spequant.methods import Losses
from spequant.models import resnet8
from spequant.quantizers import PACT, SAWB
from spequant.train import NotFinite, TrainingState, fit, make_optimizer, make_schedule, parameter_groups

STEPS = 20


def a_state(method):
    torch.manual_seed(0)
    train, _ = load_digits()
    model = spequant.prepare(resnet8(in_channels=1), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, eval_batches(train, 128))
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=0.01, weight_decay=0))
    state = TrainingState(model, method, optimizer, make_schedule("cosine", optimizer, 5 * STEPS))
    return state, lambda epoch, start: train_batches(train, 64, seed=0, epoch=epoch, augment=None, start=start)


class Breaks:
    """Retrain, but at `step` something goes wrong in the way that `how(model)` says."""

    def __init__(self, step, how):
        self.step, self.when, self.how, self.inner = 0, step, how, spequant.Retrain()

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]

    def __call__(self, model, batch):
        self.step += 1
        losses = self.inner(model, batch)
        if self.step != self.when:
            return losses
        return Losses(losses.total + self.how(model), losses.task, losses.distill, losses.logits)


def gradient_of_a_range(model):
    return torch.sqrt(act_quantizers(model)["layer2.0.conv1"].clip * 0).sum()  # 0, its gradient NaN


def gradient_of_a_weight(model):
    return torch.sqrt(model.layer3[0].conv2.layer.weight.sum() * 0)


def gone(method, *, batches=None, epochs=5, **settings):
    """(error, snapshots by step, last state, batches) of training that goes wrong."""
    state, own = a_state(method)
    saved = {0: state.capture()}
    with pytest.raises(NotFinite) as error:
        fit(
            state,
            batches or own,
            epochs=epochs,
            steps=STEPS,
            on_checkpoint=lambda state: saved.update({state.step: state.capture()}),
            **settings,
        )
    return error.value, saved, state, batches or own
