"""Image sets: order, augmentation, held-out images, batches; tensors that are refused."""

import numpy as np
import pytest
import torch

from reference.augment import augment as literal_augment
from spequant.data import Augment, ImageSet, eval_batches, hold_out, train_batches


def image_set(n=100, size=8, channels=3, classes=10):
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % classes, (0.5,) * channels, (0.25,) * channels, classes)


def test_batches_follow_from_seed_and_epoch_and_resume_at_any_step():
    data = image_set()
    batches = list(train_batches(data, 16, seed=3, epoch=2, augment=Augment()))
    resumed = list(train_batches(data, 16, seed=3, epoch=2, augment=Augment(), start=4))
    assert len(batches) == 6 and len(resumed) == 2
    for (x, y), (x2, y2) in zip(batches[4:], resumed, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 1}):
        x, _ = next(train_batches(data, 16, augment=None, **other))
        assert not torch.equal(x, next(train_batches(data, 16, seed=3, epoch=2, augment=None))[0])


def test_an_epoch_holds_every_image_once():
    data = image_set(96)
    labels = torch.cat([y for _, y in train_batches(data, 16, seed=0, epoch=0, augment=None)])
    assert torch.equal(labels.sort().values, data.labels.sort().values)


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_equals_its_reference(flip):
    images = image_set(32).images
    augment = Augment(4, flip)
    fast = augment(images, augment.draw(32, np.random.default_rng(5)))
    assert torch.equal(fast, literal_augment(images, 4, flip, np.random.default_rng(5)))


def test_evaluation_batches_hold_everything_in_order():
    data = image_set(70)
    batches = list(eval_batches(data, 32))
    assert [len(y) for _, y in batches] == [32, 32, 6]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.normalise(data.images))


def test_normalise():
    data = image_set()
    expected = (data.images.double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(data.normalise(data.images).double(), expected, rtol=0, atol=1e-6)


def test_hold_out_is_disjoint_balanced_and_fixed():
    data = image_set(200)
    data.images[:, 0, 0, 0] = torch.arange(200, dtype=torch.uint8)
    rest, held_out = hold_out(data, 50)
    ids = [set(part.images[:, 0, 0, 0].tolist()) for part in (rest, held_out)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 200
    assert torch.bincount(held_out.labels).tolist() == [5] * 10
    assert torch.equal(held_out.images, hold_out(data, 50)[1].images)
    assert hold_out(data, 0) == (data, None)
    for count in (-1, 200):
        with pytest.raises(ValueError, match=f"held_out is {count}"):
            hold_out(data, count)


def test_bad_image_sets_are_refused():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="labels run from 0 to 10"):
        ImageSet(images, torch.tensor([0, 1, 2, 10]), (0.5,) * 3, (0.5,) * 3, 10)
    with pytest.raises(ValueError, match="expected uint8"):
        ImageSet(images.float(), torch.zeros(4, dtype=torch.int64), (0.5,) * 3, (0.5,) * 3, 10)
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(train_batches(image_set(), 0, seed=0, epoch=0, augment=None))
