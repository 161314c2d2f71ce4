"""Batch norm: re-estimated running statistics, and the modes in which a pass leaves, updates or uses them."""

import pytest
import torch
from torch import nn

import spequant
from spequant.calibration.batch_norm import (
    SyncBatchNorm,
    batch_norm_mode,
    batch_norm_untracked,
    dropout_off,
    synchronise_batch_norm,
)
from spequant.calibration.batches import modes_kept
from spequant.layers import act_quantizers
from spequant.quantizers import PACT, SAWB


def test_statistics_are_reestimated_at_low_bits():
    def net():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.9), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        )

    batches = [torch.randn(16, 3, 6, 6) for _ in range(4)]
    model = spequant.prepare(net(), weight=SAWB(2), act=PACT(2), ends=2).train()
    spequant.calibrate(model, batches, samples=64)
    assert model.training and model[3].p == 0.9
    model[3].p = 0.0
    means = []
    with torch.no_grad():
        for x in batches:
            hidden = model[0](x)
            normal = nn.functional.batch_norm(hidden, None, None, model[1].weight, model[1].bias, training=True)
            means.append((hidden.mean((0, 2, 3)), model[4](normal.relu()).mean((0, 2, 3))))
    for norm, mean in zip((model[1], model[5]), zip(*means, strict=True), strict=True):
        torch.testing.assert_close(norm.running_mean, torch.stack(mean).mean(0))
    model = spequant.prepare(net(), weight=SAWB(2), act=PACT(2), ends=2)
    spequant.calibrate(model, batches, samples=64, reestimate=False)
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_no_batches_are_an_error_that_changes_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    batches = iter([torch.randn(64, 4) + 3])
    spequant.reestimate_batch_norm(model, batches)
    before = model[1].running_mean.clone()
    with pytest.raises(ValueError, match="batches are empty"):
        spequant.reestimate_batch_norm(model, batches)
    assert torch.equal(before, model[1].running_mean)


def test_without_batch_norm_no_batch_is_read():
    def batches():
        raise AssertionError("a batch was read")
        yield

    for model in (
        nn.Linear(4, 2),
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, affine=False, track_running_stats=False)),
    ):
        spequant.reestimate_batch_norm(model, batches())


@pytest.mark.parametrize("mode", ["leave", "update", "eval"])
def test_each_mode_reads_and_writes_its_statistics(mode):
    norm, x = nn.BatchNorm1d(3).train(), torch.randn(16, 3) * 2 + 1
    before = {name: b.clone() for name, b in norm.named_buffers()}
    with batch_norm_mode(norm, mode):
        y = norm(x)
    expected = nn.functional.batch_norm(x, before["running_mean"], before["running_var"], training=mode != "eval")
    torch.testing.assert_close(y, expected)
    assert norm.training
    assert (int(norm.num_batches_tracked) == 1) == (mode == "update")
    assert torch.equal(norm.running_mean, torch.zeros(3)) == (mode != "update")


def test_a_wrong_mode_is_named():
    with pytest.raises(ValueError, match="batch_norm is 'keep'"), batch_norm_mode(nn.BatchNorm1d(2), "keep"):
        pass


def test_everything_is_restored_after_an_exception():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.3), nn.BatchNorm1d(2)).train()
    model[3].eval()
    with pytest.raises(KeyError), modes_kept(model), dropout_off(model), batch_norm_untracked(model):
        assert model[2].p == 0 and not model[1].track_running_stats
        model.eval()
        raise KeyError
    assert [m.training for m in model] == [True, True, True, False]
    assert model[2].p == 0.3 and model[1].track_running_stats


def test_a_batch_norm_that_does_more_is_refused_by_name():
    class BatchNormAct(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    with pytest.raises(ValueError, match=r"0 is a BatchNormAct,.*--train\.no-sync-batch-norm"):
        synchronise_batch_norm(nn.Sequential(BatchNormAct(2)))


def test_with_one_process_synchronised_batch_norm_is_plain_batch_norm():
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
    outputs = [other.train()(x), other.eval()(x)]
    assert list(other.state_dict()) == names and other[1].weight is plain[1].weight
    for a, b in zip(expected, outputs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_synchronised_batch_norm_keeps_its_hooks_and_the_quantizer_of_its_output():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.bn1(self.conv1(x))
            return x + self.bn2(self.conv2(x.relu()))

    x = torch.randn(64, 3, 4, 4)
    model = spequant.prepare(Residual(), weight=SAWB(2), act=PACT(2), residual=2)
    spequant.calibrate(model, [x], samples=64)
    calls = []
    model.bn2.register_forward_hook(lambda *_: calls.append(1))
    quantizers, expected = list(act_quantizers(model)), model.eval()(x)
    synchronise_batch_norm(model)
    assert type(model.bn1) is type(model.bn2) is SyncBatchNorm and not model.bn1.training
    assert list(act_quantizers(model)) == quantizers and len(quantizers) == 4
    assert torch.equal(model(x), expected) and len(calls) == 2


class Attention(nn.Module):
    """With dropout that is a number in its module: torch's attention, torchvision's names, a recurrent layer."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.attention_dropout, self.norm = kind, 0.5, nn.BatchNorm1d(8)
        self.inside = {"attention": nn.MultiheadAttention(8, 2, 0.5), "lstm": nn.LSTM(8, 8, 2, dropout=0.5)}.get(kind)

    def forward(self, x):
        if self.kind == "attention":
            x = self.inside(x, x, x)[0]
        elif self.kind == "lstm":
            x = self.inside(x)[0]
        else:
            x = nn.functional.dropout(x, self.attention_dropout, self.training)
        return self.norm(x.mean(0))


@pytest.mark.parametrize("kind", ["attention", "lstm", "a number"])
def test_statistics_do_not_follow_from_dropout(kind):
    model, x = Attention(kind), torch.randn(5, 16, 8)
    means = []
    for seed in range(2):
        torch.manual_seed(seed)
        spequant.reestimate_batch_norm(model, [x])
        means.append(model.norm.running_mean.clone())
    assert torch.equal(*means) and model.attention_dropout == 0.5
    assert kind == "a number" or model.inside.dropout == 0.5
