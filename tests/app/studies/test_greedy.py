"""The order in which layers gain most from more bits, and soft labels by width."""

import pytest
import torch

import spequant
from spequant.app.studies.greedy import greedy_order, soft_label_rows
from spequant.data import ImageSet
from spequant.models import CifarResNet
from spequant.quantizers import PACT, SAWB, percentile


def test_greedy_order_raises_what_leaves_the_least_loss():
    pixels, labels = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (32,))
    data = ImageSet(pixels, labels, mean=(0.5,) * 3, std=(0.3,) * 3, classes=10)
    images = data.normalise(pixels)
    model = spequant.prepare(CifarResNet(1, widths=(8, 8, 16)), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [(images, labels)], samples=32, rule=percentile(99.9))
    steps = greedy_order(model, data)
    low = [n for n, q in spequant.layers.act_quantizers(model).items() if q.bits == 2]
    assert sorted(s.layer for s in steps[1:]) == sorted(low)

    def loss(bits):
        with spequant.precision(model, spequant.Fixed(bits)), torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model.eval()(images), labels))

    tries = {name: loss({name: 8}) for name in low}
    assert steps[1].layer == min(tries, key=tries.get) and steps[1].loss == pytest.approx(min(tries.values()), rel=1e-5)
    assert steps[-1].loss == pytest.approx(loss(dict.fromkeys(low, 8)), rel=1e-5)
    rows = soft_label_rows(model, data, (2, 8))
    assert rows[1]["distance to 8 bits"] == pytest.approx(0, abs=1e-6) and rows[0]["distance to 8 bits"] > 1e-4
    assert all(0.1 < row["confidence"] < 1 and 0 < row["entropy"] < 2.31 for row in rows)
