"""mixup, CutMix and label smoothing: the targets they make, what they follow from, and how they reach the loss."""

import random
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spequant.data import Mixing
from spequant.recipes import RECIPES
from spequant.recipes.assembly import assemble, start_processes
from spequant.tasks import Classification
from spequant.train import make_accelerator, train_step


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
def test_images_and_targets_are_mixed_at_one_share_and_nothing_else_is_drawn(mix):
    pytest.importorskip("timm")
    images, labels = batch()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    made = [mix(images.clone(), labels, 5, (3, 1, step)) for step in range(8)]
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    again, targets = mix(images.clone(), labels, 5, (3, 1, 4))
    assert torch.equal(again, made[4][0]) and torch.equal(targets, made[4][1])
    assert len({float(soft[0, 0]) for _, soft in made}) > 4
    plain = F.one_hot(labels, 5) * (1 - mix.smoothing) + mix.smoothing / 5
    for mixed, soft in made:
        share = float((soft[0, 0] - plain[7, 0]) / (plain[0, 0] - plain[7, 0]))
        assert 0 <= share <= 1 and torch.allclose(soft, share * plain + (1 - share) * plain.flip(0), atol=1e-6)
        kept = ((mixed - images).abs() < 1e-6).flatten(1).float().mean(1)
        if not mix.mixup:
            assert abs(float(kept[0]) - share) < 1e-6
        if not mix.cutmix:
            torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0), rtol=0, atol=1e-5)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match=r"a batch of 7 images cannot be mixed in pairs; .*train\.batch_size"):
        Mixing(0.2)(*batch(7), 5)
    for settings, message in (({"mixup": -1}, "mixup is -1"), ({"smoothing": 1.0}, r"label smoothing is 1\.0")):
        with pytest.raises(ValueError, match=message):
            Mixing(**settings)


def recipe(name="digits-w2a2-speq", **data):
    made = RECIPES[name]()
    train = replace(made.train, precision="fp32", compile=False, device="cpu", accumulate=2, label_smoothing=0.1)
    return replace(made, train=train, data=replace(made.data, **data), network=replace(made.network, weights=None))


def test_sets_in_memory_are_mixed_in_training_alone_and_the_same_for_teacher_and_student(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    mixed = recipe(mixup=0.3, cutmix=1.0)
    plain = replace(mixed, data=replace(mixed.data, mixup=0.0, cutmix=0.0), train=recipe().train)
    made, other = (assemble(one, start_processes(one, tmp_path)) for one in (mixed, plain))
    for a, b in zip(made.state.model.state_dict().values(), other.state.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)  # calibrated on the same images
    first = list(islice(made.field.batches(0, 0), 4))
    assert first[0][1].shape == (64, 10) and not torch.equal(first[0][0], next(other.field.batches(0, 0))[0])
    for (x, y), (x2, y2) in zip(first[2:], islice(made.field.batches(0, 2), 2), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    seen = []
    logits = Classification.logits
    monkeypatch.setattr(
        Classification, "logits", lambda self, model, part: (seen.append(part[0]), logits(self, model, part))[1]
    )
    made.state.wrapped.train()
    sums = train_step(made.state, first[0], made.accelerator)
    assert len(seen) == 4 and seen[0] is seen[1] and seen[2] is seen[3]  # teacher and student, of two parts
    assert sums.isfinite().all() and 0 <= float(sums[3]) <= 64


def test_hits_on_soft_labels_are_those_of_their_largest(tmp_path):
    def hits(smoothing):
        one = recipe("digits-float")
        one = replace(one, train=replace(one.train, label_smoothing=smoothing, lr=1e-6))
        made = assemble(one, start_processes(one, tmp_path))
        made.state.wrapped.train()
        return float(train_step(made.state, next(iter(made.field.batches(0, 0))), make_accelerator())[3])

    assert hits(0.0) == hits(0.2)
