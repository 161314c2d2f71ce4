"""The table of a prepared network: every layer, what stays float, and its additions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.models import resnet8
from spequant.quantizers import LSQ, PACT, SAWB
from support.additions import Block


class Net(nn.Module):
    """An addition of the result of a function, a recurrent layer, and a layer to leave float."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.other = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.rnn, self.head = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.other(x)) + x)
        return self.head(self.rnn(x.unsqueeze(1))[0][:, 0])


def test_every_layer_and_every_missed_addition_is_listed(capsys):
    with pytest.warns(UserWarning, match=r"rnn \(GRU\)"):
        model = spequant.prepare(Net(), weight=SAWB(2), act=PACT(4), overrides={"other": (2, None)})
    table = spequant.summary(model)
    printed = capsys.readouterr().out
    assert printed.endswith(f"{table}\n") and [row[0] for row in table.rows] == ["stem", "other", "head"]
    assert table.rows[0][1:] == ("Linear", "8 bits, SAWB", "8 bits, PACT", "not calibrated")
    assert table.rows[1][2:] == ("2 bits, SAWB", "float", "")
    assert "left float: rnn (GRU)" in printed and "the result of relu" in printed
    spequant.calibrate(model, [torch.rand(64, 4)], samples=64)
    low, high = spequant.summary(model).rows[0][4].split(" to ")
    assert low == "0" and float(high) == pytest.approx(1, abs=0.05)


def test_addends_are_counted_marked_or_not(capsys):
    x = torch.randn(4, 3, 8, 8)
    model = spequant.prepare(Block("x + f(x)"), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [x], samples=4)
    assert "addends of residual additions: 2" in str(spequant.summary(model))
    assert [row[1] for row in spequant.summary(model).rows].count("addend") == 2
    marked = str(spequant.summary(spequant.prepare(resnet8(), weight=SAWB(2), act=PACT(2))))
    assert "addends of residual additions: 6" in marked and "layer1.0.add.shortcut" in marked
    without = spequant.prepare(Block("x + f(x)"), weight=SAWB(2), act=PACT(2), residual=None)
    assert "found that stay float: " in str(spequant.summary(without))


def test_a_network_that_cannot_be_traced_is_reported():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(self.a(x) + x) if x.sum() > 0 else x

    model = spequant.prepare(Decides(), weight=LSQ(2), act=LSQ(2), residual=None, per_channel=True)
    said = str(spequant.summary(model))
    assert "cannot be traced" in said and "2 bits" not in said and "LSQ, 4 ranges" in said


def test_a_float_network_has_none():
    with pytest.raises(ValueError, match=r"spequant\.prepare first"):
        spequant.summary(nn.Linear(4, 4))
