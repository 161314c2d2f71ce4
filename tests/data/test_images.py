"""Image sets: reading, errors, order, augmentation, holding out, and the recipe's fields of them."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from reference.augment import augment as literal_augment
from spequant.data import Augment, ImageSet, eval_batches, hold_out, load_cifar10, load_digits, train_batches
from spequant.recipes.build import build_data
from spequant.recipes.check import check
from spequant.recipes.schema import Data, Network, Recipe, Training, differences, from_json, to_json


def image_set(n=100, size=8, channels=3, classes=10):
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % classes, (0.5,) * channels, (0.25,) * channels, classes)


def test_batches_follow_from_seed_and_epoch_and_resume_at_any_step():
    data = image_set()
    whole = list(train_batches(data, 16, seed=3, epoch=2, augment=Augment()))
    again = list(train_batches(data, 16, seed=3, epoch=2, augment=Augment(), start=4))
    assert len(whole) == 6 and len(again) == 2
    for (x, y), (x2, y2) in zip(whole[4:], again, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 1}):
        x, _ = next(train_batches(data, 16, augment=None, **other))
        assert not torch.equal(x, next(train_batches(data, 16, seed=3, epoch=2, augment=None))[0])


def test_an_epoch_holds_every_image_once():
    data = image_set(96)
    labels = torch.cat([y for _, y in train_batches(data, 16, seed=0, epoch=0, augment=None)])
    assert torch.equal(labels.sort().values, data.labels.sort().values)


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_equals_its_literal_twin(flip):
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
    rest, held = hold_out(data, 50)
    ids = [set(part.images[:, 0, 0, 0].tolist()) for part in (rest, held)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 200
    assert torch.bincount(held.labels).tolist() == [5] * 10
    assert torch.equal(held.images, hold_out(data, 50)[1].images)
    assert hold_out(data, 0) == (data, None)
    for count in (-1, 200):
        with pytest.raises(ValueError, match=f"held_out is {count}"):
            hold_out(data, count)


def test_digits():
    train, test = load_digits()
    assert len(train) == 1297 and len(test) == 500 and train.images.shape[1:] == (1, 8, 8)
    assert train.images.max() == 255
    pixels = train.images.float() / 255
    assert abs(pixels.mean() - train.mean[0]) < 0.01 and abs(pixels.std() - train.std[0]) < 0.01


def test_bad_image_sets_are_refused():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="labels run from 0 to 10"):
        ImageSet(images, torch.tensor([0, 1, 2, 10]), (0.5,) * 3, (0.5,) * 3, 10)
    with pytest.raises(ValueError, match="expected uint8"):
        ImageSet(images.float(), torch.zeros(4, dtype=torch.int64), (0.5,) * 3, (0.5,) * 3, 10)
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(train_batches(image_set(), 0, seed=0, epoch=0, augment=None))


def test_cifar10(shared_data):
    train, test = load_cifar10(shared_data)
    assert len(train) == 50_000 and len(test) == 10_000
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert torch.equal(
        train.images[0, :, 0, 0], torch.tensor([59, 62, 63], dtype=torch.uint8)
    )  # the first image, a frog
    assert train.labels[0] == 6
    x, _ = next(islice(train_batches(train, 128, seed=0, epoch=0, augment=Augment()), 1))
    assert x.shape == (128, 3, 32, 32)


def test_damaged_or_missing_cifar10_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin does not exist; expected 30730000 bytes"):
        load_cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin has 100 bytes; expected 30730000"):
        load_cifar10(tmp_path)
    (folder / "data_batch_1.bin").write_bytes(b"\x0b" * 30_730_000)
    with pytest.raises(ValueError, match="holds the label 11"):
        load_cifar10(tmp_path)


def test_images_are_the_first_ones_and_held_out_come_after_them():
    whole = load_digits()[0]
    rest, held, _ = build_data(Data("digits", images=300, held_out=100), torch.device("cpu"))
    assert torch.equal(rest.images, whole.images[:300]) and held is not None and len(held) == 100
    later = {image.numpy().tobytes() for image in whole.images[300:]}
    assert all(image.numpy().tobytes() in later for image in held.images)
    everything = build_data(Data("digits", images=len(whole), held_out=0), torch.device("cpu"))
    assert len(everything[0]) == len(whole) and everything[1] is None
    with pytest.raises(ValueError, match="images is 5000"):
        build_data(Data("digits", images=5000), torch.device("cpu"))
    for images, count in ((300, 5000), (len(whole), 1)):
        with pytest.raises(
            ValueError, match=rf"images is {images} and data\.held_out {count}; expected {len(whole)} to"
        ):
            build_data(Data("digits", images=images, held_out=count), torch.device("cpu"))
    _, held, _ = build_data(Data("digits", images=300, held_out=len(whole) - 300), torch.device("cpu"))
    assert held is not None and torch.equal(held.images, whole.images[300:])  # all that are left


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            Data("cifar"),
            r"data\.name is 'cifar'; expected one of digits, .*torchvision/NAME, squad; did you mean cifar10",
        ),
        (Data("torchvision"), "data.name is 'torchvision'"),
        (Data("digits", size=32), r"data\.size is 32, which has no effect: digits is a set in memory; expected None"),
        (Data("folder", augment=False, color_jitter=0.4), r"data\.color_jitter is 0\.4, .*: data\.augment is False"),
        (Data("cifar10", auto_augment="rand-m9"), r"data\.auto_augment is 'rand-m9'"),
        (Data("folder", download=True), r"data\.download is True, but a folder"),
        (Data("folder", workers=-1), r"data\.workers is -1"),
        (Data(mixup=-0.1), r"data\.mixup is -0\.1"),
        (Data(cutmix=-1), r"data\.cutmix is -1"),
    ],
)
def test_fields_that_name_no_set_or_have_no_effect_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        check(Recipe(data=data))
    with pytest.raises(ValueError, match=r"train\.label_smoothing is 1"):
        check(Recipe(train=Training(label_smoothing=1)))
    with pytest.raises(ValueError, match=r"train\.batch_size is 33; expected an even number"):
        check(Recipe(data=Data(mixup=0.2), train=Training(batch_size=33)))


def test_recipes_written_before_a_field_was_there_are_read_and_workers_may_change():
    recipe = Recipe(data=Data("folder", color_jitter=0.4, auto_augment="rand-m9", size=160, workers=2))
    assert from_json(to_json(recipe)) == recipe
    old = json.loads(to_json(Recipe()))
    kept = ("name", "root", "download", "images", "held_out", "measure_every", "augment")
    old["data"] = {name: old["data"][name] for name in kept}
    del old["train"]["label_smoothing"]
    assert from_json(json.dumps(old)) == Recipe()
    one, other = (Recipe(network=Network(weights=Path(p))) for p in ("float", "x/../float"))
    assert differences(one, other) == [] != differences(one, Recipe(network=Network(weights=Path("x/float"))))
    assert differences(Recipe(data=Data(workers=1)), Recipe()) == []
    assert differences(Recipe(data=Data(mixup=0.2)), Recipe()) == ["data.mixup is 0.2, expected 0.0"]
