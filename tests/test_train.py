"""The loop, its optimisers and schedules, diagnostics, and golden losses."""

import math
from itertools import islice

import pytest
import torch
from torch import nn

import spequant
from spequant.data import eval_batches, load_digits, train_batches
from spequant.layers import act_quantizers
from spequant.models import resnet8
from spequant.quantizers import LSQ, PACT, SAWB
from spequant.train import (
    Diagnostics,
    TrainingState,
    evaluate,
    fit,
    make_accelerator,
    make_optimizer,
    make_schedule,
    parameter_groups,
    train_step,
)


@pytest.fixture
def prepared():
    train, _ = load_digits()
    model = spequant.prepare(resnet8(in_channels=1), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, eval_batches(train, 128))
    return model, train


def test_ranges_have_a_group_of_their_own(prepared):
    model, _ = prepared
    weights, ranges = parameter_groups(model, lr=0.1, weight_decay=1e-4, range_lr=0.01)
    assert {id(p) for p in ranges["params"]} == {id(q.clip) for q in act_quantizers(model).values()}
    assert (weights["lr"], weights["weight_decay"], ranges["lr"], ranges["weight_decay"]) == (0.1, 1e-4, 0.01, 0.0)
    everything = sum(p.numel() for g in (weights, ranges) for p in g["params"])
    assert everything == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "peak", "end"), [("cosine", 0, 1e-3), ("one-cycle", 20, 1e-3), ("step", 0, 0.0101)])
def test_schedules(name, peak, end):
    optimizer = make_optimizer("sgd", [{"params": [nn.Parameter(torch.ones(1))], "lr": 1.0, "weight_decay": 0.0}])
    schedule = make_schedule(name, optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(1.0, abs=1e-3) and rates[peak] == pytest.approx(1.0, abs=1e-2)
    assert rates[-1] <= end


def test_unknown_names_are_refused():
    group = [{"params": [nn.Parameter(torch.ones(1))], "lr": 1.0, "weight_decay": 0.0}]
    with pytest.raises(ValueError, match="optimizer is 'adam'"):
        make_optimizer("adam", group)
    with pytest.raises(ValueError, match="schedule is 'linear'"):
        make_schedule("linear", make_optimizer("sgd", group), 10)


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


def test_a_run_follows_from_its_seed(prepared):
    first = losses_of(prepared, spequant.SPEQ())
    torch.manual_seed(0)
    train, _ = load_digits()
    model = spequant.prepare(resnet8(in_channels=1), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, eval_batches(train, 128))
    assert losses_of((model, train), spequant.SPEQ()) == first


def test_bf16_trains_under_autocast_and_evaluates_in_fp32(prepared):
    model, train = prepared
    kinds = []
    hook = model.linear.layer.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    seen = losses_of(prepared, spequant.SPEQ(), accelerator=make_accelerator("bf16"))
    assert seen[-1] < seen[0] and set(kinds) == {torch.bfloat16}
    kinds.clear()
    evaluate(model, eval_batches(train, 500))
    hook.remove()
    losses_of(prepared, spequant.Retrain(), epochs=1, accelerator=make_accelerator("fp32"))  # one after the other
    assert set(kinds) == {torch.float32} and not torch.is_autocast_enabled("cpu")


def test_gradients_add_up_over_parts_of_a_batch_and_are_clipped():
    weights = {}
    for parts in (1, 4):
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
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


def test_dense_logits_are_refused_where_classes_are_last():
    model = torch.nn.Conv2d(3, 5, 1)
    with pytest.raises(ValueError, match=r"logits of shape \(2, 5, 4, 4\); expected \(batch, classes\)"):
        spequant.Retrain()(model, (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)))


def test_an_average_of_the_weights_is_the_result(prepared):
    model, train = prepared
    opt = make_optimizer("sgd", parameter_groups(model, lr=0.05, weight_decay=0))
    state = TrainingState(model, spequant.SPEQ(), opt, make_schedule("cosine", opt, 10), ema=0.75)
    assert state.result is state.ema.module and state.result is not model
    averaged = None
    for n, batch in enumerate(islice(train_batches(train, 32, seed=0, epoch=0, augment=None), 30), 1):
        train_step(state, batch, make_accelerator())
        decay = min(0.75, (1 + n) / (10 + n))  # .75 from the 26th step on
        now = [p.detach().clone() for p in model.parameters()]
        averaged = now if n == 1 else [decay * a + (1 - decay) * b for a, b in zip(averaged, now, strict=True)]
    for a, b in zip(averaged, state.result.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"ema is 1\.5; expected a decay between 0 and 1"):
        TrainingState(model, spequant.SPEQ(), opt, make_schedule("cosine", opt, 10), ema=1.5)


def test_a_loss_that_is_not_finite_stops_training(prepared):
    with pytest.raises(FloatingPointError, match=r"not finite at epoch 1, step \d.*: lower the learning rate"):
        losses_of(prepared, spequant.Retrain(), lr=1e12)


def test_evaluation_is_the_share_of_right_answers_and_keeps_the_mode():
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


def test_diagnostics_by_layer():
    model = spequant.prepare(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), weight=LSQ(2), act=PACT(2), ends=2
    )
    x = torch.rand(64, 4)
    spequant.calibrate(model, [x], samples=64)
    look = Diagnostics()
    with torch.no_grad():
        act_quantizers(model)["0"].clip.fill_(0.5)
    row = look(model, x)
    layer = row["layers"]["0"]
    assert layer["clipped"] == pytest.approx(float((x > 0.5).float().mean())) and layer["high"] == 0.5
    assert layer["levels"] == layer["of"] == 4 and layer["changed"] is None
    assert 0 <= row["agreement"] <= 1
    assert look(model, x)["layers"]["0"]["changed"] == 0
    with torch.no_grad():
        model[0].layer.weight.neg_()
    assert look(model, x)["layers"]["0"]["changed"] > 0.5
    assert model.training


def test_a_range_lr_of_zero_freezes_ranges_and_tied_weights_are_compared_once(prepared):
    model, _ = prepared
    assert parameter_groups(model, lr=0.1, weight_decay=0, range_lr=0.0)[1]["lr"] == 0
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    tied = spequant.prepare(tied, weight=SAWB(2), act=PACT(2), ends=2)
    x = torch.rand(64, 4)
    spequant.calibrate(tied, [x], samples=64)
    look = Diagnostics()
    look(tied, x)
    with torch.no_grad():
        tied[0].layer.weight.neg_()
    assert look(tied, x)["layers"]["0"]["changed"] > 0.5
