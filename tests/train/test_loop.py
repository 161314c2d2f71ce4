"""The loop: reproducible training that lowers the loss; parts of a batch, evaluation, losses that are not finite."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import spequant
from spequant.data import eval_batches, load_digits, train_batches
from spequant.methods import allow_float
from spequant.quantizers import LSQ, PACT, SAWB
from spequant.train import (
    TrainingState,
    evaluate,
    fit,
    make_accelerator,
    make_optimizer,
    make_schedule,
    parameter_groups,
    train_step,
)
from support.equations import calibrated, small_batch, small_network


@pytest.fixture
def prepared():
    return digits()


def digits():
    """A small network on the digits, prepared, and the digits."""
    torch.manual_seed(0)
    train, _ = load_digits()
    batch = next(iter(eval_batches(train, 128)))
    return calibrated(spequant.prepare(small_network(1), weight=SAWB(2), act=PACT(2)), batch), train


def losses_of(prepared, method, *, optimizer="sgd", lr=0.02, epochs=2, ema=None, **settings):
    model, train = prepared
    seen = []
    opt = make_optimizer(optimizer, parameter_groups(model, lr=lr, weight_decay=1e-4))
    fit(
        TrainingState(model, method, opt, make_schedule("cosine", opt, epochs * 10), ema=ema),
        lambda epoch, start: train_batches(train, 128, seed=0, epoch=epoch, augment=None, start=start),
        epochs=epochs,
        steps=10,
        on_step=lambda p: seen.append(p.row()["loss"]),
        **settings,
    )
    return seen


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", [spequant.Retrain, spequant.SPEQ])
def test_training_lowers_the_loss(prepared, method, optimizer):
    seen = losses_of(prepared, method(), optimizer=optimizer, lr=0.02 if optimizer == "sgd" else 0.002)
    assert len(seen) == 20 and seen[-1] < seen[9] < seen[0]


def test_a_run_follows_from_its_seed():
    assert losses_of(digits(), spequant.SPEQ()) == losses_of(digits(), spequant.SPEQ())


def test_bf16_trains_under_autocast_and_evaluates_in_fp32(prepared):
    model, train = prepared
    kinds = []
    hook = model.linear.layer.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    seen = losses_of(prepared, spequant.SPEQ(), accelerator=make_accelerator("bf16"))
    assert seen[-1] < seen[0] and set(kinds) == {torch.bfloat16}
    kinds.clear()
    evaluate(model, eval_batches(train, 500))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluate(model, eval_batches(train, 500))
        assert torch.is_autocast_enabled("cpu")
    hook.remove()
    losses_of(
        prepared, spequant.Retrain(), epochs=1, accelerator=make_accelerator("fp32")
    )  # a second accelerator in one process
    assert set(kinds) == {torch.float32} and not torch.is_autocast_enabled("cpu")


def test_gradients_add_up_over_parts_of_a_batch_and_are_clipped():
    weights = {}
    for parts in (1, 4):
        torch.manual_seed(0)
        model = allow_float(nn.Linear(6, 3))
        before = model.weight.detach().clone()
        opt = make_optimizer("sgd", [{"params": list(model.parameters()), "lr": 1.0, "weight_decay": 0.0}])
        state = TrainingState(model, spequant.Retrain(), opt, make_schedule("step", opt, 10))
        batch = torch.randn(8, 6), torch.arange(8) % 3
        train_step(state, batch, make_accelerator(accumulate=parts), clip_norm=0.01)
        weights[parts] = model.weight.detach() - before
        assert state.step == 1 and 0 < weights[parts].norm() <= 0.01 + 1e-6
    torch.testing.assert_close(weights[1], weights[4])
    with pytest.raises(ValueError, match="8 does not split into 3"):
        train_step(state, batch, make_accelerator(accumulate=3))


def test_a_loss_that_is_not_finite_stops_training(prepared):
    with pytest.raises(FloatingPointError, match=r"not finite at epoch 1, step \d.*: lower"):
        losses_of(prepared, spequant.Retrain(), lr=1e12)


def test_accuracy_is_the_share_of_right_answers_and_the_mode_is_restored():
    class Parity(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0], -x[:, 0]], 1)

    model = Parity().train()
    batches = [
        (torch.tensor([[1.0], [-1.0], [1.0]]), torch.tensor([0, 1, 1])),
        (torch.tensor([[2.0]]), torch.tensor([0])),
    ]
    result = evaluate(model, batches)
    assert result.accuracy == 75 and result.samples == 4 and model.training
    margins = [2.0, 2.0, -2.0, 4.0]
    assert result.loss == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 4, rel=1e-6)
    with pytest.raises(ValueError, match="batches are empty"):
        evaluate(model, [])


class _Waits(TorchDispatchMode):
    """Collects operations that bring a value from the device to the host."""

    def __init__(self):
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal"):
            self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [spequant.Retrain, spequant.SPEQ, lambda: spequant.Distill(small_network())])
@pytest.mark.parametrize("quantizers", [(SAWB(2), PACT(2)), (LSQ(3), LSQ(3))])
def test_no_step_waits_for_the_device(method, quantizers):
    batch = small_batch(8)
    model = calibrated(spequant.prepare(small_network(), weight=quantizers[0], act=quantizers[1]), batch)
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=0.01, weight_decay=0.0))
    state = TrainingState(model, method(), optimizer, make_schedule("cosine", optimizer, 10))
    accelerator = make_accelerator()
    with _Waits() as waits:
        sums = train_step(state, batch, accelerator)
        assert not waits.operations
        float(sums[0])
    assert waits.operations  # a read is really noticed


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("epochs", [0, -1, 1.5, True]),
        ("steps", [0, -1, 1.5]),
        ("checkpoint_every", [0, -1, 0.5]),
        ("clip_norm", [0.0, -1.0, math.nan]),
    ],
)
def test_numbers_with_which_nothing_would_be_trained_are_refused(argument, values):
    model = allow_float(nn.Linear(6, 3))
    opt = make_optimizer("sgd", parameter_groups(model, lr=1.0, weight_decay=0.0))
    state = TrainingState(model, spequant.Retrain(), opt, make_schedule("step", opt, 10))
    for value in values:
        with pytest.raises(ValueError, match=f"^{argument} is {value!r}"):
            fit(state, lambda epoch, start: [], **{"epochs": 1, "steps": 1, argument: value})
    assert state.step == 0


def test_a_batch_without_a_sample_does_not_count():
    model = nn.Linear(6, 3)
    x, labels = torch.randn(8, 6), torch.arange(8) % 3
    expected = evaluate(model, [(x, labels)])
    assert evaluate(model, [(x[:0], labels[:0]), (x, labels), (x[:0], labels[:0])]) == expected
    with pytest.raises(ValueError, match="batches are empty"):
        evaluate(model, [(x[:0], labels[:0])])
