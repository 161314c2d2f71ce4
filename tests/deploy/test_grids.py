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


@pytest.mark.parametrize("end", [float("nan"), float("inf")])
def test_a_range_that_diverged_is_named_by_an_export(end, tmp_path):
    x = torch.rand(4, 4)
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), weight=LSQ(4), act=PACT(4))
    spequant.calibrate(model, [x], samples=4)
    quantizer = next(m for name, m in model.named_modules() if isinstance(m, PACT) and name.startswith("2"))
    with torch.no_grad():
        next(iter(quantizer.parameters())).fill_(end)
    with pytest.raises(ValueError, match=r"^2: its range is 0 to (nan|inf)"):
        spequant.export(model.eval(), tmp_path / "net.onnx", [x])
    assert not any(tmp_path.iterdir())
