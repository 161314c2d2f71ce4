"""Optimizers and schedules: groups, learning rates along training, names."""

import pytest
import torch
from torch import nn

import spequant
from spequant.layers import act_quantizers
from spequant.quantizers import PACT, SAWB
from spequant.train import make_optimizer, make_schedule, parameter_groups
from support.equations import small_network


def test_ranges_have_a_group_of_their_own():
    model = spequant.prepare(small_network(), weight=SAWB(2), act=PACT(2))
    weights, ranges = parameter_groups(model, lr=0.1, weight_decay=1e-4, range_lr=0.01)
    assert {id(p) for p in ranges["params"]} == {id(q.clip) for q in act_quantizers(model).values()}
    assert (weights["lr"], weights["weight_decay"], ranges["lr"], ranges["weight_decay"]) == (0.1, 1e-4, 0.01, 0.0)
    everything = sum(p.numel() for g in (weights, ranges) for p in g["params"])
    assert everything == sum(p.numel() for p in model.parameters())
    assert parameter_groups(model, lr=0.1, weight_decay=0)[1]["lr"] == 0.1
    assert parameter_groups(model, lr=0.1, weight_decay=0, range_lr=0.0)[1]["lr"] == 0


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


@pytest.mark.parametrize("argument", ["lr", "weight_decay", "range_lr"])
def test_a_rate_that_is_negative_or_not_finite_is_refused(argument):
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"^{argument} is {value!r}"):
            parameter_groups(small_network(), **{"lr": 0.1, "weight_decay": 0.0, argument: value})
