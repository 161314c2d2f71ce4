"""Batch norm whose statistics are taken over all processes: alone it is plain batch norm."""

import pytest
import torch
from torch import nn

from spequant.batch_norm import SyncBatchNorm, synchronise_batch_norm


def test_a_batch_norm_that_does_more_is_refused_by_name():
    class BatchNormAct(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    with pytest.raises(ValueError, match=r"0 is a BatchNormAct,.*--train\.no-sync-batch-norm"):
        synchronise_batch_norm(nn.Sequential(BatchNormAct(2)))


def test_synchronised_batch_norm_alone_is_plain_batch_norm():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Linear(6, 5), nn.Flatten(0, 1))
    plain.append(nn.BatchNorm1d(6, affine=False, track_running_stats=False))
    x = torch.randn(2, 3, 8, 8)
    other = nn.Sequential(*plain)
    names = list(plain.state_dict())
    expected = [plain(x), plain.eval()(x)]
    plain.train()
    plain[1].reset_running_stats()
    synchronise_batch_norm(other)
    assert [type(m) is SyncBatchNorm for m in other] == [False, True, False, False, True]
    found = [other.train()(x), other.eval()(x)]
    assert list(other.state_dict()) == names and other[1].weight is plain[1].weight
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)
