"""Grids of codes, and what clamps leave of them."""

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy.grids import Grid
from spequant.quantizers import LSQ, PACT


@pytest.mark.parametrize(
    ("grid", "ends", "expected"),
    [
        (Grid(0.6, -1, 1), (-5.0, -1.0), (-1, -1)),
        (Grid(1.0, 0, 3), (5.0, float("inf")), (3, 3)),
        (Grid(1.0, 0, 3), (-float("inf"), -2.0), (0, 0)),
        (Grid(0.5, -127, 127), (0.0, 6.0), (0, 12)),
    ],
)
def test_a_clamped_grid_stays_within_the_grid(grid, ends, expected):
    clamped = grid.clamped(*ends)
    assert (clamped.low, clamped.high) == expected
    again = clamped.clamped(-1.0, 1.0)
    assert clamped.low <= again.low <= again.high <= clamped.high


def first_weight(model):
    return next(p for p in model.parameters() if p.dim() == 2)[0]


def range_of(kind, of_weight):
    def found(model):
        quantizers = (m for name, m in model.named_modules() if isinstance(m, kind) and m.of_weight == of_weight)
        return next(parameter for q in quantizers for parameter in q.parameters())

    return found


@pytest.mark.parametrize("end", [float("nan"), float("inf")])
@pytest.mark.parametrize("format", ["onnx", "packed"])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        (first_weight, "its weight holds NaN or Inf"),
        (range_of(LSQ, of_weight=True), "its range is -?(nan|inf) to (nan|inf)"),
        (range_of(PACT, of_weight=False), "its range is 0 to (nan|inf)"),
    ],
)
def test_what_diverged_is_named_by_an_export(place, said, format, end, tmp_path):
    x = torch.rand(4, 4)
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model = spequant.prepare(layers, weight=LSQ(4), act=PACT(4), per_channel=True, ends=4)
    spequant.calibrate(model, [x], samples=4)
    with torch.no_grad():
        place(model).fill_(end)
    with pytest.raises(ValueError, match=rf"^\d: {said}"):
        spequant.export(model.eval(), tmp_path / f"net.{format}", [x])
    assert not any(tmp_path.iterdir())
