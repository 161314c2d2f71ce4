"""Bits within so much flash or memory: where the peak is, and where the weights are, they are fewer."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from spequant.app.recipes import RECIPES
from spequant.app.studies.planned import Plans, planned
from spequant.deploy.c.footprint import STACK, Footprint

WIDTHS = (2, 4, 8)
LOSSES = {2: 0.2, 4: 0.15, 8: 0.0}


def layers(*sizes: tuple[int, int, int]) -> nn.Sequential:
    """Convolutions of these inputs, outputs and strides, each with batch norm; then means and a head."""
    parts = [
        [nn.Conv2d(i, o, 3, stride, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()] for i, o, stride in sizes
    ]
    return nn.Sequential(*(m for part in parts for m in part), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))


@pytest.mark.slow
def test_the_peak_gets_fewer_bits_within_memory_and_many_weights_within_flash():
    torch.manual_seed(0)
    network = layers((3, 12, 1), (12, 12, 4), (12, 12, 1), (12, 32, 1), (32, 32, 1))
    x = torch.randn(8, 3, 16, 16)
    quant = replace(RECIPES["digits-w2a2-speq"]().quant, residual_bits=None)
    plans = planned(quant, network, [x], x[:1], WIDTHS)
    peak, after, weights = "3", "6", "12"  # reads 12 x 16 x 16; 12 x 4 x 4; 32 x 4 x 4 with most weights
    losses = {name: LOSSES for name in (peak, after, weights)}
    eight = dict.fromkeys(losses, 8)
    for what, where in (("ram", peak), ("flash", weights)):
        fewer = {**eight, where: 2}
        budget = plans.cost(fewer, what)
        assert budget < plans.cost({**eight, after: 2}, what) <= plans.cost(eight, what)
        chosen = plans.best(losses, budget, what)
        assert chosen[where] < 8 and chosen == {**eight, where: chosen[where]} and plans.cost(chosen, what) <= budget
    assert plans.best(losses, plans.cost(eight, "ram"), "ram") == eight


def made_up(bits):
    """A planner of three layers, of which the first two meet in memory; the arena has 5 % more than is alive."""
    a, b, c = (bits[name] for name in "abc")
    alive = 100 * a, 100 * a + 300 * b, 300 * b + 50 * c
    return Footprint(40 * a + 10 * b + 90 * c, int(1.05 * max(alive)), 8, (), {}, alive)


@pytest.mark.parametrize("what", ["flash", "ram"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_best_within_a_budget(what, share):
    plans, losses = Plans(made_up, WIDTHS), {n: {2: w, 4: w / 3, 8: 0.0} for n, w in zip("abc", (3, 2, 1), strict=True)}
    every = [dict(zip("abc", widths, strict=True)) for widths in itertools.product(WIDTHS, repeat=3)]
    ends = [plans.cost(dict.fromkeys("abc", bits), what) for bits in (2, 8)]
    budget = ends[0] + share * (ends[1] - ends[0])
    within = [widths for widths in every if plans.cost(widths, what) <= budget]
    totals = [sum(losses[n][bits] for n, bits in widths.items()) for widths in within]
    chosen = plans.best(losses, budget, what)
    assert chosen in within and len(within) < len(every)
    assert sum(losses[n][bits] for n, bits in chosen.items()) <= min(totals) + (0.5 if what == "ram" else 1e-9)
    with pytest.raises(ValueError, match=rf"budget is {ends[0] - 1:,}; expected {ends[0]:,}"):
        plans.best(losses, ends[0] - 1, what)


def test_programs_of_another_length_are_stretched():
    """One more call with more bits, as of an input that is rounded twice."""

    def plan(bits):
        alive = (10 * bits["a"], 20 * bits["a"], 30 * bits["b"])
        return Footprint(0, max(alive), 0, (), {}, alive if bits["b"] == 2 else (*alive, 4))

    plans, losses = Plans(plan, (2, 8)), {"a": {2: 1.0, 8: 0.0}, "b": {2: 0.5, 8: 0.0}}
    assert plans.best(losses, STACK + 170, "ram") == {"a": 8, "b": 2}
