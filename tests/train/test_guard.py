"""A loss that is not finite: when it is noticed, what is named, what it costs."""

import math
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import spequant
from spequant.data import eval_batches, load_digits, train_batches
from spequant.layers import act_quantizers
from spequant.methods import Losses
from spequant.models import resnet8
from spequant.quantizers import PACT, SAWB
from spequant.train import TrainingState, fit, make_accelerator, make_optimizer, make_schedule, parameter_groups
from spequant.train.guard import FiniteGuard
from spequant.train.loop import train_step

STEPS = 20


def a_state(method):
    train, _ = load_digits()
    model = spequant.prepare(resnet8(in_channels=1), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, eval_batches(train, 128))
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=0.01, weight_decay=0))
    state = TrainingState(model, method, optimizer, make_schedule("cosine", optimizer, 5 * STEPS))
    return state, lambda epoch, start: train_batches(train, 64, seed=0, epoch=epoch, augment=None, start=start)


class Breaks:
    """Retrain, but at `step` something goes wrong in the way that `how(model, losses)` says."""

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
    return torch.sqrt(act_quantizers(model)["layer2.0.conv1"].clip * 0)  # 0, its gradient NaN


@pytest.mark.parametrize(
    ("how", "step", "said"),
    [
        (
            gradient_of_a_range,
            29,
            r"loss is not finite at epoch 2, step 10 \(step 30 of the run\); the first to go: the range of layer2",
        ),
        (
            gradient_of_a_range,
            28,  # which would be saved before a loss could tell
            r"network is not finite after epoch 2, step 8 \(step 28 of the run\); the first to go: the range of layer2",
        ),
        (lambda model: math.nan, 33, r"epoch 2, step 13 \(step 33 of the run\); the first to go: the loss in all$"),
    ],
)
def test_epoch_step_and_the_first_to_go_are_named_and_nothing_is_saved_after(how, step, said):
    state, batches = a_state(Breaks(step, how))
    saved = []
    with pytest.raises(FloatingPointError) as error:
        fit(
            state,
            batches,
            epochs=5,
            steps=STEPS,
            checkpoint_every=4,
            on_checkpoint=lambda state: saved.append(state.step),
        )
    assert re.search(said, str(error.value)), error.value
    assert saved[-1] == (step - 1) // 4 * 4 and all(torch.isfinite(p).all() for p in state.model.parameters()) == (
        step == 33
    )


def test_the_last_step_may_not_leave_a_network_that_is_not_finite():
    """Its loss is finite, what it makes of the weights is not, and no later loss tells."""
    state, batches = a_state(Breaks(2 * STEPS, gradient_of_a_range))
    saved = []
    with pytest.raises(
        FloatingPointError, match=rf"step {2 * STEPS} of the run.; the first to go: the range of layer2"
    ):
        fit(state, batches, epochs=2, steps=STEPS, on_checkpoint=lambda state: saved.append(state.step))
    assert saved == [STEPS]


def test_inputs_and_activations_are_named():
    state, batches = a_state(spequant.SPEQ())

    def damaged(epoch, start):
        for i, (x, y) in enumerate(batches(epoch, start), start):
            yield (x.masked_fill(x > 0, math.nan) if (epoch, i) == (1, 5) else x), y

    said = r"epoch 2, step 6 .* the first to go: the batch's inputs; activations"
    with pytest.raises(FloatingPointError, match=said):
        fit(state, damaged, epochs=2, steps=STEPS)

    class Root(torch.nn.Module):
        def forward(self, x):
            return torch.sqrt(x)

    state, batches = a_state(spequant.Retrain())
    state.model.bn1 = Root()
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 1 .* the first to go: activations that leave bn1;"):
        fit(state, batches, epochs=1, steps=STEPS)


def test_a_loss_that_is_finite_when_repeated_is_said_to_be():
    state, batches = a_state(spequant.Retrain())
    guard = FiniteGuard(state, lambda batch: train_step(state, batch, make_accelerator()), batches, STEPS)
    state.step = 3
    guard.note(torch.tensor(math.nan))
    with pytest.raises(FloatingPointError, match=r"between steps 1 and 3,.* repeated"):
        guard.check()


class Reads(TorchDispatchMode):
    """Counts what makes Python wait for a device: a tensor's value asked for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_reads_nothing_from_the_device():
    state, batches = a_state(spequant.SPEQ())
    accelerator = make_accelerator()
    guard = FiniteGuard(state, lambda batch: train_step(state, batch, accelerator), batches, STEPS)
    given = batches(0, 0)
    train_step(state, next(given), accelerator)
    batch = next(given)
    with Reads() as reads:
        guard.note(train_step(state, batch, accelerator)[0])
    assert reads.count == 0
    with Reads() as reads:
        guard.check()
    assert reads.count > 0
