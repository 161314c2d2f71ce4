"""Factors and biases of int8 layers: engines, emulated, step where the twin does, or what differs is counted."""

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import lower
from spequant.deploy.grids import Grid
from spequant.deploy.integers import Integers
from spequant.deploy.operations import Weighted
from spequant.deploy.requantization import (
    CODE_SUM,
    PRODUCT,
    litert_codes,
    pair_scale,
    requantization,
    requantized,
    rounding_steps,
    tflm_codes,
    unsearched,
)
from spequant.quantizers import PACT, SAWB


def layer(codes: int, factor: int, outputs: int = 8, inputs: int = 30) -> Integers:
    """Weights of `codes` odd numbers around zero, times `factor`."""
    generator = torch.Generator().manual_seed(0)
    weight = (2 * torch.randint(0, codes, (outputs, inputs), generator=generator) - codes + 1) * factor
    bias = torch.randint(-500, 500, (outputs,), generator=generator)
    scale = torch.rand(outputs, generator=generator) * 1e-3 + 1e-3
    return Integers(weight.to(torch.int8), bias.to(torch.int32), scale)


@pytest.mark.parametrize(
    ("sums", "factor", "litert", "tflm"),
    [
        ([31, 32, 33], 2.0**-6, [0, 0, 1], [1, 1, 1]),  # 31 / 2 is rounded to 16 first: half of 2^5
        ([-31, -32, -33], 2.0**-6, [0, 0, -1], [0, -1, -1]),  # halves up, then halves away from zero
        ([95, 96, 97], 2.0**-6, [1, 2, 2], [2, 2, 2]),
        ([10, -10], 0.25, [2, -2], [3, -3]),
        ([3, 5], 2.0, [6, 10], [6, 10]),
    ],
)
def test_two_ways_of_rounding(sums, factor, litert, tflm):
    sums = np.array(sums)
    assert litert_codes(sums, np.float32(factor)).tolist() == litert
    assert tflm_codes(sums, np.float64(factor)).tolist() == tflm


def every_sum(form, factor, source, low, high):
    """{engine: how many sums have another code, by how much it is off}, all sums looked at, one by one."""
    s = rounding_steps(form, factor, source, low, high)
    found = requantization(s, np.float32(0.5), np.float32(0.25))
    wrong = {"litert": 0, "tflm": 0}
    for o, (unit, bias) in enumerate(zip(s.unit[:, 0], s.bias[:, 0], strict=True)):
        sums = unit * np.arange(s.first[o, 0], s.last[o, 0] + 1) + bias
        twin = np.rint(sums.astype(np.float32) * factor[o].numpy()).clip(low, high)
        moved, scale = sums + found.bias[o] - bias, found.scale[o]
        got = {
            "litert": litert_codes(moved, np.float32(0.5) * scale / np.float32(0.25)),
            "tflm": tflm_codes(moved, np.float64(0.5) * scale / np.float64(0.25)),
        }
        for name, codes in got.items():
            wrong[name] += int(np.abs(codes.clip(low, high) - twin).sum())
    return found, wrong


@pytest.mark.parametrize(("codes", "factor", "high"), [(2, 127, 1), (4, 42, 3), (8, 18, 7)])
def test_of_few_levels_no_sum_has_another_code(codes, factor, high):
    form = layer(codes, factor)
    found, wrong = every_sum(form, form.scale, (0, high), 0, high)
    assert found.unequal == wrong == {"litert": 0, "tflm": 0}
    plain = rounding_steps(form, form.scale, (0, high), 0, high)
    there = {"litert": form.scale.numpy(), "tflm": form.scale.numpy().astype(np.float64)}
    assert plain.unequal(np.zeros(8, np.int64), there)["litert"].sum() == 0


def test_at_8_bits_the_sums_that_differ_are_counted():
    form = layer(4, 42, inputs=300)
    found, wrong = every_sum(form, form.scale, (0, 3), -127, 127)
    assert found.unequal == wrong and wrong["litert"] == 0 < wrong["tflm"]


def test_codes_that_are_stored_larger_leave_steps_room():
    form = layer(4, 42, inputs=300)
    s = rounding_steps(form, form.scale, (0, 3), -127, 127)
    few = requantization(s, np.float32(1), np.float32(1)).unequal["tflm"]
    assert requantization(s.times(85), np.float32(1), np.float32(1)).unequal["tflm"] < few / 10


def test_a_channel_without_weights_keeps_the_code_of_its_bias():
    form = Integers(torch.zeros(2, 3, dtype=torch.int8), torch.tensor([700, -700], dtype=torch.int32), torch.ones(2))
    found, wrong = every_sum(form, form.scale / 500, (0, 3), -3, 3)
    assert found.unequal == wrong == {"litert": 0, "tflm": 0}


def test_what_is_not_searched_is_near_what_is():
    torch.manual_seed(0)
    x = torch.rand(8, 6)
    model = spequant.prepare(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), weight=SAWB(4), act=PACT(4))
    spequant.calibrate(model, [x], samples=8)
    op = next(op for op in lower(model.eval(), x[:1]).ops if isinstance(op, Weighted) and op.grid is not None)
    for times, divisor in ((1, 1), (3, 1), (6, 2)):
        units = np.float32(0.5), np.float32(0.25)
        plain, found = (make(op, *units, times, divisor) for make in (unsearched, requantized))
        np.testing.assert_allclose(plain.scale, found.scale, rtol=0.1)
        assert np.abs(plain.bias - found.bias).max() <= 64 and plain.bias.dtype == found.bias.dtype
        assert plain.unequal == {"litert": 0, "tflm": 0}


def test_sums_of_two_codes():
    """Of equal steps every other sum is a tie; 1 / 2 and 5 / 2 engines round up, the twin to the even code."""
    same, half = Grid(0.5, 0, 3), (np.float32(0.5), np.float32(0.5))
    found = pair_scale(CODE_SUM, (same, same, Grid(0.5, 0, 6)), half)
    assert (found.scale, found.unequal, found.inside) == (0.5, {"litert": 0, "tflm": 0}, True)
    assert not pair_scale(CODE_SUM, (same, same, Grid(0.5, 0, 5)), half).inside
    found = pair_scale(CODE_SUM, (same, same, Grid(1.0, 0, 3)), half)
    assert found.scale == pytest.approx(1, rel=1e-5) and 0 < found.unequal["litert"] <= 4


def test_products_of_two_codes():
    """3 * 2 / 4 and 2 * 1 / 4 are ties: one engine rounds them to the even code, the other away from zero."""
    grids, half = (Grid(0.5, -1, 3), Grid(0.5, -2, 2), Grid(1.0, -2, 2)), (np.float32(0.5), np.float32(0.5))
    found = pair_scale(PRODUCT, grids, half)
    assert found.inside and found.unequal["litert"] == 0 < found.unequal["tflm"]
    assert not pair_scale(PRODUCT, (*grids[:2], Grid(0.5, -2, 2)), half).inside
