"""Diagnostics as rows of a file: they are read back as they were measured."""

import math

import numpy as np
import pytest
import torch

import spequant
from spequant.models import resnet8
from spequant.quantizers import PACT, SAWB
from spequant.train import Diagnostics, layers_row, read_looks


def test_rows_are_read_back_as_measured():
    model = spequant.prepare(resnet8(in_channels=1), weight=SAWB(2), act=PACT(2))
    x = torch.rand(64, 1, 8, 8)
    spequant.calibrate(model, [x], samples=64)
    look = Diagnostics()
    seen = [look(model, x), look(model, x)]
    looks = read_looks([{"epoch": i, **layers_row(row, first=i == 0)} for i, row in enumerate(seen)])
    assert looks is not None and looks.epochs == [0, 1] and looks.names == list(seen[0]["layers"])
    for i, (name, layer) in enumerate(seen[1]["layers"].items()):
        assert (looks.weight_bits[i], looks.act_bits[i]) == (layer.get("weight_bits"), layer.get("act_bits"))
        for what, column in looks.values.items():
            expected = layer.get(what)
            expected = math.nan if expected is None else expected
            assert column[i, 1] == pytest.approx(expected, rel=1e-3, nan_ok=True), (name, what)
    assert np.isnan(looks.values["changed"][:, 0]).all() and looks.agreement[1] == pytest.approx(
        seen[1]["agreement"], rel=1e-3
    )
    assert read_looks([]) is None and read_looks([{"epoch": 0, "layers": {}, "agreement": 1.0}]) is None
