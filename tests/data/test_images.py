"""Image sets: order, augmentation, held-out images, batches; tensors that are refused."""

from dataclasses import replace

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


def of_targets(labels, classes=3):
    n = len(labels)
    pixels = torch.arange(n * 3 * 64, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(n, 3, 8, 8)
    return ImageSet(pixels, labels, (0.0,) * 3, (1.0,) * 3, classes)


@pytest.mark.parametrize("shape", [(20,), (20, 2)])
def test_targets_that_are_no_classes_follow_their_images(shape):
    data = of_targets(torch.randn(shape))
    assert not data.of_classes and not data.masks
    rest, held_out = hold_out(data, 5)
    assert rest.labels.shape == (15, *shape[1:]) and held_out.labels.shape == (5, *shape[1:])
    by_pixels = {tuple(image.flatten().tolist()): label for image, label in zip(data.images, data.labels, strict=True)}
    for images, labels in train_batches(data, 4, seed=0, epoch=0, augment=None):
        for image, label in zip(images, labels, strict=True):
            assert torch.equal(by_pixels[tuple((image * 255).round().int().flatten().tolist())], label)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_mask_is_cropped_and_flipped_with_its_image(dtype):
    data = of_targets(torch.zeros(12, 8, 8, dtype=dtype), classes=251)
    data = replace(data, labels=data.images[:, 0].to(dtype))  # each pixel says what its mask is
    assert data.masks
    for images, masks in train_batches(data, 6, seed=0, epoch=0, augment=Augment()):
        pixels = (images[:, 0] * 255).round().long()
        outside = masks.long() == 255
        assert masks.dtype == dtype and outside.any()  # padding
        assert torch.equal(pixels[~outside], masks.long()[~outside]) and not pixels[outside].any()


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.full((4,), torch.nan), "NaN"),
        (torch.zeros(4, 8, 9, dtype=torch.uint8), r"masks of shape \(8, 9\); expected \(8, 8\)"),
        (torch.zeros(3, 2), r"shape \(3, 2\); expected \(4,\)"),
    ],
)
def test_bad_targets_are_refused(labels, named):
    with pytest.raises(ValueError, match=named):
        ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), labels, (0.5,) * 3, (0.5,) * 3, 3)


def test_names_are_as_many_as_classes():
    data = replace(image_set(), names=tuple("abcdefghij"))
    assert data.part(slice(0, 3)).names == data.names and image_set().names is None
    with pytest.raises(ValueError, match=r"names are 2; .* 10"):
        replace(data, names=("a", "b"))


def test_images_in_memory_say_how_a_file_becomes_one():
    config = replace(image_set(channels=1), mean=(0.3,), std=(0.4,)).configuration
    assert (config.mean, config.std, config.size, config.crop_pct) == ((0.3,), (0.4,), 8, 1.0)
    assert replace(image_set(), mean=(0.3,), std=(0.4,)).configuration.mean == (0.3, 0.3, 0.3)
    wide = torch.zeros(4, 3, 8, 6, dtype=torch.uint8)
    assert ImageSet(wide, torch.zeros(4, dtype=torch.long), (0.5,), (0.5,), 2).configuration is None
