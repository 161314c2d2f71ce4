"""mixup, CutMix and label smoothing: images and labels, and what they depend on."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spequant.data import Mixing
from spequant.methods.tasks import Classification


def batch(n=8, classes=5):
    return torch.randn(n, 3, 12, 12), torch.arange(n) % classes


def test_smoothed_labels_give_torchs_smoothed_loss():
    images, labels = batch()
    same, soft = Mixing(smoothing=0.1)(images.clone(), labels, 5)
    assert torch.equal(same, images) and soft.shape == (8, 5) and soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(1), torch.ones(8))
    logits = torch.randn(8, 5)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(Classification().loss(logits, (images, soft)), expected)


@pytest.mark.parametrize("mix", [Mixing(mixup=0.4), Mixing(cutmix=1.0), Mixing(0.4, 1.0, 0.1)])
def test_images_and_labels_are_mixed_with_one_share_and_global_states_stay(mix):
    pytest.importorskip("timm")
    images, labels = batch()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    batches = [mix(images.clone(), labels, 5, (3, 1, step)) for step in range(8)]
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    again, targets = mix(images.clone(), labels, 5, (3, 1, 4))
    assert torch.equal(again, batches[4][0]) and torch.equal(targets, batches[4][1])
    assert len({float(soft[0, 0]) for _, soft in batches}) > 4
    plain = F.one_hot(labels, 5) * (1 - mix.smoothing) + mix.smoothing / 5
    for mixed, soft in batches:
        share = float((soft[0, 0] - plain[7, 0]) / (plain[0, 0] - plain[7, 0]))
        assert 0 <= share <= 1 and torch.allclose(soft, share * plain + (1 - share) * plain.flip(0), atol=1e-6)
        unchanged = ((mixed - images).abs() < 1e-6).flatten(1).float().mean(1)
        if not mix.mixup:
            assert abs(float(unchanged[0]) - share) < 1e-6
        if not mix.cutmix:
            torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0), rtol=0, atol=1e-5)


def test_odd_batches_and_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"batch of 7 images .*train\.batch_size"):
        Mixing(0.2)(*batch(7), 5)
    for settings, message in (({"mixup": -1}, "mixup is -1"), ({"smoothing": 1.0}, r"label smoothing is 1\.0")):
        with pytest.raises(ValueError, match=message):
            Mixing(**settings)
