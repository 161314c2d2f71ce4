"""Repeated training finds the first tensor that is not finite: by itself, and within a run."""

import gc
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import spequant
from spequant.app.recipes import RECIPES
from spequant.app.runs import run
from spequant.train import (
    NotFinite,
    TrainingState,
    first_to_go,
    fit,
    make_accelerator,
)
from support.breaking import STEPS, Breaks, a_state, gone, gradient_of_a_range, gradient_of_a_weight
from support.reporters import Said


def named(method, **settings):
    """Return the error, the answer of `first_to_go` (equal from all starts), and the last step saved."""
    error, saved, _, batches = gone(method, **settings)
    answers = {}
    for step in {max(saved), 0}:
        state, _ = a_state(method)
        state.restore(saved[step])
        answers[step] = first_to_go(state, batches, error, steps=STEPS)
    assert len(set(answers.values())) == 1  # the answer does not depend on the start
    return error, answers[0], max(saved)


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
        pytest.param(
            gradient_of_a_range,
            28,  # which would be saved before a loss could tell
            4,
            24,
            "the network is not finite after epoch 2, step 8 (step 28 of the run)",
            "the range of layer2.0.conv1: lower the learning rate",
            marks=pytest.mark.slow,
        ),
        (
            gradient_of_a_weight,
            7,  # before the first checkpoint
            None,
            0,
            "the loss is not finite at epoch 1, step 8 (step 8 of the run)",
            "layer3.0.conv2.layer.weight, made so by the step before",
        ),
        pytest.param(
            lambda model: math.nan,
            33,
            4,
            32,
            "the loss is not finite at epoch 2, step 13 (step 33 of the run)",
            "the loss in all",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_step_is_named_at_once_and_the_layer_on_replaying(how, step, every, saved, what, first):
    error, answer, last = named(Breaks(step, how), checkpoint_every=every)
    assert error.message.startswith(what) and str(error).startswith(error.message) and "first_to_go(" in str(error)
    assert answer.startswith(f"{what}; the first to go: {first}"), answer
    assert last == saved  # nothing is saved after it


@pytest.mark.slow
def test_inputs_and_activations_are_named():
    _, batches = a_state(spequant.SPEQ())

    def damaged(epoch, start):
        for i, (x, y) in enumerate(batches(epoch, start), start):
            yield (x.masked_fill(x > 0, math.nan) if (epoch, i) == (1, 5) else x), y

    _, answer, last = named(spequant.SPEQ(), batches=damaged, epochs=2)
    assert last == STEPS and "epoch 2, step 6" in answer
    assert "the first to go: the batch's inputs; activations that leave" in answer and "more" in answer

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
    answer = first_to_go(broken()[0], batches, error.value, steps=STEPS)
    assert "epoch 1, step 1 " in answer and "the first to go: activations that leave bn1;" in answer


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
    answer = first_to_go(with_idle()[0], batches, error.value, steps=STEPS)
    assert answer.startswith("the network is not finite after epoch 1, step 5 ") and "the first to go: idle:" in answer


@pytest.mark.slow
def test_parts_of_a_batch_are_watched_one_by_one():
    method = Breaks(9, lambda model: math.nan)  # the third step's first half, of three calls per step
    accelerator = make_accelerator(accumulate=4)
    state, batches = a_state(method)
    with pytest.raises(NotFinite) as error:
        fit(state, batches, epochs=1, steps=STEPS, accelerator=accelerator)
    state, _ = a_state(Breaks(9, method.how))
    answer = first_to_go(state, batches, error.value, steps=STEPS, accelerator=accelerator)
    assert "epoch 1, step 3 (step 3 of the run); the first to go: the loss in all" in answer


def test_a_loss_that_is_finite_when_repeated_is_reported():
    state, batches = a_state(spequant.Retrain())
    error = NotFinite("the loss is not finite at step 3", [], step=3, finite=0, noticed=3)
    assert "all is finite when the steps are repeated" in first_to_go(state, batches, error, steps=STEPS)
    state.step = 3
    with pytest.raises(ValueError, match="state is of step 3"):
        first_to_go(state, batches, error, steps=STEPS)


class Listens(Said):
    """It calls `heard` after each line."""

    def __init__(self, heard=lambda: None):
        super().__init__()
        self.heard = heard

    def say(self, line):
        super().say(line)
        self.heard()


def broken_run(monkeypatch, step, how):
    """The recipe of a run of digits, 5 epochs of 10 steps, that goes wrong at `step`."""
    recipe = RECIPES["digits-w2a2-retrain"]()
    monkeypatch.setattr(type(recipe.method), "build", lambda self, start: Breaks(step, how))
    train = replace(recipe.train, epochs=5, batch_size=128, device="cpu", compile=False, checkpoint_every=4)
    return replace(recipe, train=train, network=replace(recipe.network, weights=None))


@pytest.mark.parametrize(("step", "begin"), [(15, 12), pytest.param(2, 0, marks=pytest.mark.slow)])
def test_a_run_repeats_its_last_steps_and_reports_it(step, begin, monkeypatch, tmp_path):
    recipe, states = broken_run(monkeypatch, step, gradient_of_a_range), []

    def alive():
        states.extend(x for x in gc.get_objects() if type(x) is TrainingState)

    reporter = Listens(alive)
    with pytest.raises(FloatingPointError, match=r"range of layer2\.0\.conv1, made so") as error:
        run(recipe, tmp_path / "run", reporter)
    assert f"(step {step + 1} of the run)" in str(error.value)
    assert (tmp_path / "run" / "diverged.txt").read_text() == f"{error.value}\n"
    assert (
        len(reporter.lines) == 1 and f"from step {begin} " in reporter.lines[0] and not states
    )  # the state of the run was freed
    assert not (tmp_path / "run" / "result.json").exists()


def test_repeating_may_be_interrupted(monkeypatch, tmp_path):
    recipe, texts = broken_run(monkeypatch, 15, gradient_of_a_range), []

    def interrupted():
        texts.append(Path(tmp_path / "run" / "diverged.txt").read_text())
        raise KeyboardInterrupt

    with pytest.raises(FloatingPointError, match=r"epoch 2, step 6 \(step 16") as error:
        run(recipe, tmp_path / "run", Listens(interrupted))
    assert texts == [f"{error.value}\n"] and "the first to go" not in texts[0]


@pytest.mark.slow
def test_the_last_step_may_not_leave_a_network_that_is_not_finite():
    """The loss of the last step is finite, its update of the weights is not, and no later loss shows it."""
    error, answer, last = named(Breaks(2 * STEPS, gradient_of_a_range), epochs=2)
    assert f"step {2 * STEPS} of the run" in error.message and last == STEPS
    assert "the first to go: the range of layer2.0.conv1:" in answer
