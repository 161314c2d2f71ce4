"""A loss that is not finite: when it is noticed, what is named, what it costs."""

import gc
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import spequant
from spequant.data import eval_batches, load_digits, train_batches
from spequant.layers import act_quantizers
from spequant.methods import Losses
from spequant.models import resnet8
from spequant.quantizers import PACT, SAWB
from spequant.recipes import RECIPES, assembly, run
from spequant.train import (
    NotFinite,
    TrainingState,
    first_to_go,
    fit,
    make_accelerator,
    make_optimizer,
    make_schedule,
    parameter_groups,
)
from spequant.train.guard import FiniteGuard
from spequant.train.loop import train_step

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
    return torch.sqrt(act_quantizers(model)["layer2.0.conv1"].clip * 0)  # 0, its gradient NaN


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


def named(method, **settings):
    """What is said at once, and what once the steps from the last checkpoint, or the start, were made again."""
    error, saved, _, batches = gone(method, **settings)
    said = {}
    for step in {max(saved), 0}:
        state, _ = a_state(method)
        state.restore(saved[step])
        said[step] = first_to_go(state, batches, error, steps=STEPS)
    assert len(set(said.values())) == 1  # wherever one begins
    return error, said[0], max(saved)


@pytest.mark.parametrize(
    ("how", "step", "every", "saved", "what", "first"),
    [
        (
            gradient_of_a_range,
            29,
            4,
            28,
            "the loss is not finite at epoch 2, step 10 (step 30 of the run)",
            "the range of layer2.0.conv1, made so by the step before: lower the learning rate",
        ),
        (
            gradient_of_a_range,
            28,  # which would be saved before a loss could tell
            4,
            24,
            "the network is not finite after epoch 2, step 8 (step 28 of the run)",
            "the range of layer2.0.conv1: lower the learning rate",
        ),
        (
            gradient_of_a_weight,
            7,  # before the first checkpoint
            None,
            0,
            "the loss is not finite at epoch 1, step 8 (step 8 of the run)",
            "layer3.0.conv2.layer.weight, made so by the step before",
        ),
        (
            lambda model: math.nan,
            33,
            4,
            32,
            "the loss is not finite at epoch 2, step 13 (step 33 of the run)",
            "the loss in all",
        ),
    ],
)
def test_the_step_is_named_at_once_and_the_layer_on_replaying(how, step, every, saved, what, first):
    error, said, last = named(Breaks(step, how), checkpoint_every=every)
    assert error.told.startswith(what) and str(error).startswith(error.told) and "first_to_go(" in str(error)
    assert said.startswith(f"{what}; the first to go: {first}"), said
    assert last == saved  # nothing is saved after it


def test_what_is_not_finite_by_now_is_told_at_once():
    error, *_ = gone(Breaks(28, gradient_of_a_range), checkpoint_every=4)
    assert "after step 28 these are not: the range of layer2.0.conv1: lower" in error.told
    assert (error.step, error.finite, error.noticed) == (None, 24, 28)
    error, *_ = gone(Breaks(28, gradient_of_a_range), checkpoint_every=35)
    assert "step 29 of the run); after step 35 these are not: the range of " in error.told and " more: " in error.told
    assert (error.step, error.finite, error.noticed) == (29, 20, 35)


def test_the_last_step_may_not_leave_a_network_that_is_not_finite():
    """Its loss is finite, what it makes of the weights is not, and no later loss tells."""
    error, said, last = named(Breaks(2 * STEPS, gradient_of_a_range), epochs=2)
    assert f"step {2 * STEPS} of the run" in error.told and last == STEPS
    assert "the first to go: the range of layer2.0.conv1:" in said


def test_inputs_and_activations_are_named():
    _, batches = a_state(spequant.SPEQ())

    def damaged(epoch, start):
        for i, (x, y) in enumerate(batches(epoch, start), start):
            yield (x.masked_fill(x > 0, math.nan) if (epoch, i) == (1, 5) else x), y

    _, said, last = named(spequant.SPEQ(), batches=damaged, epochs=2)
    assert last == STEPS and "epoch 2, step 6" in said
    assert "the first to go: the batch's inputs; activations that leave" in said and "more" in said

    class Root(torch.nn.Module):
        def forward(self, x):
            return torch.sqrt(x)

    def broken():
        state, batches = a_state(spequant.Retrain())
        state.model.bn1 = Root()
        return state, batches

    state, batches = broken()
    with pytest.raises(NotFinite, match=r"epoch 1, step 1 ") as error:
        fit(state, batches, epochs=1, steps=STEPS)
    said = first_to_go(broken()[0], batches, error.value, steps=STEPS)
    assert "epoch 1, step 1 " in said and "the first to go: activations that leave bn1;" in said


def test_a_parameter_that_no_loss_depends_on_is_noticed_at_the_step_that_broke_it():
    class Idle(Breaks):
        def __call__(self, model, batch):
            self.step += 1
            if self.step == self.when:
                with torch.no_grad():
                    model.idle.fill_(math.inf)
            return self.inner(model, batch)

    def with_idle():
        state, batches = a_state(Idle(5, None))
        state.model.register_buffer("idle", torch.zeros(3))
        return state, batches

    state, batches = with_idle()
    with pytest.raises(NotFinite, match="step 20 of the run") as error:
        fit(state, batches, epochs=1, steps=STEPS)
    said = first_to_go(with_idle()[0], batches, error.value, steps=STEPS)
    assert said.startswith("the network is not finite after epoch 1, step 5 ") and "the first to go: idle:" in said


def test_parts_of_a_batch_are_watched_one_by_one():
    method = Breaks(9, lambda model: math.nan)  # the third step's first half, of three calls a step
    accelerator = make_accelerator(accumulate=4)
    state, batches = a_state(method)
    with pytest.raises(NotFinite) as error:
        fit(state, batches, epochs=1, steps=STEPS, accelerator=accelerator)
    state, _ = a_state(Breaks(9, method.how))
    said = first_to_go(state, batches, error.value, steps=STEPS, accelerator=accelerator)
    assert "epoch 1, step 3 (step 3 of the run); the first to go: the loss in all" in said


def test_a_loss_that_is_finite_when_repeated_is_said_to_be():
    state, batches = a_state(spequant.Retrain())
    error = NotFinite("the loss is not finite at step 3", [], step=3, finite=0, noticed=3)
    assert "all is finite when the steps are repeated" in first_to_go(state, batches, error, steps=STEPS)
    state.step = 3
    with pytest.raises(ValueError, match="state is of step 3"):
        first_to_go(state, batches, error, steps=STEPS)


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
    guard = FiniteGuard(state, STEPS)
    given = batches(0, 0)
    train_step(state, next(given), accelerator)
    batch = next(given)
    with Reads() as reads:
        guard.note(train_step(state, batch, accelerator)[0])
    assert reads.count == 0
    with Reads() as reads:
        guard.check()
    assert reads.count > 0


def test_nothing_of_the_state_is_copied(monkeypatch):
    calls = []
    monkeypatch.setattr(TrainingState, "capture", lambda state: calls.append(state.step))
    state, batches = a_state(spequant.Retrain())
    fit(state, batches, epochs=3, steps=STEPS)  # 60 steps: past a look
    assert state.step == 3 * STEPS and not calls


class Listens:
    """A reporter that keeps what is said, and then does `heard`."""

    def __init__(self, heard=lambda: None):
        self.lines, self.heard = [], heard

    def step(self, progress):
        pass

    def epoch(self, row):
        pass

    def say(self, line):
        self.lines.append(line)
        self.heard()


def broken_run(monkeypatch, step, how):
    """The recipe of a run of digits, 5 epochs of 10 steps, that goes wrong at `step`."""
    monkeypatch.setattr(assembly, "build_method", lambda *_, **__: Breaks(step, how))
    recipe = RECIPES["digits-w2a2-retrain"]()
    train = replace(recipe.train, epochs=5, batch_size=128, device="cpu", compile=False, checkpoint_every=4)
    return replace(recipe, train=train, network=replace(recipe.network, weights=None))


@pytest.mark.parametrize(("step", "begin"), [(15, 12), (2, 0)])
def test_a_run_goes_back_by_itself_and_says_so(step, begin, monkeypatch, tmp_path):
    recipe, states = broken_run(monkeypatch, step, gradient_of_a_range), []

    def alive():
        states.extend(x for x in gc.get_objects() if type(x) is TrainingState)

    reporter = Listens(alive)
    with pytest.raises(FloatingPointError, match=r"range of layer2\.0\.conv1, made so") as error:
        run(recipe, tmp_path / "run", reporter)
    assert f"(step {step + 1} of the run)" in str(error.value)
    assert (tmp_path / "run" / "diverged.txt").read_text() == f"{error.value}\n"
    assert len(reporter.lines) == 1 and f"from step {begin} " in reporter.lines[0] and not states  # the old one is gone
    assert not (tmp_path / "run" / "result.json").exists()


def test_going_back_may_be_interrupted(monkeypatch, tmp_path):
    recipe, found = broken_run(monkeypatch, 15, gradient_of_a_range), []

    def interrupted():
        found.append(Path(tmp_path / "run" / "diverged.txt").read_text())
        raise KeyboardInterrupt

    with pytest.raises(FloatingPointError, match=r"epoch 2, step 6 \(step 16") as error:
        run(recipe, tmp_path / "run", Listens(interrupted))
    assert found == [f"{error.value}\n"] and "the first to go" not in found[0]
