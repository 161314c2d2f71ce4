"""Settings of data sets: which images of a set, from which folder, with which augmentation."""

from dataclasses import replace

import pytest
import torch
from filelock import FileLock, Timeout

from spequant.data import (
    CIFAR10,
    CIFAR100,
    Augment,
    Crop,
    Digits,
    Folder,
    RandomCrop,
    Squad,
    Torchvision,
    load_digits,
)
from support.image_folders import fill

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    pytest.importorskip("timm")
    return fill(tmp_path_factory.mktemp("images"))


def test_training_images_are_the_first_ones_and_the_held_out_ones_follow():
    digits = load_digits()[0]
    few = Digits(images=300, held_out=100, augment=False)
    train, held_out, test = few.parts("", CPU)
    assert torch.equal(train.images, digits.images[:300]) and (len(held_out), len(test)) == (100, 500)
    following = {image.numpy().tobytes() for image in digits.images[300:]}
    assert all(image.numpy().tobytes() in following for image in held_out.images)
    everything = Digits(images=len(digits), held_out=0).parts("", CPU)
    assert len(everything[0]) == len(digits) and everything[1] is None
    _, held_out, _ = Digits(images=300, held_out=len(digits) - 300).parts("", CPU)
    assert torch.equal(held_out.images, digits.images[300:])  # all of the others
    train, held_out, _ = replace(few, images=None).parts("", CPU)
    assert (len(train), len(held_out)) == (len(digits) - 100, 100)


def test_augmentation_follows_the_settings(root):
    train, _ = load_digits()
    assert Digits(augment=False).augmentation(train) is None and Digits().augmentation(train) == Augment()
    folder = Folder(root=root, crop_scale=0.5, color_jitter=0.2, workers=0)
    images, _ = folder.load("resnet8")
    assert folder.augmentation(images) == RandomCrop(0.5, 0.2, None, images.mean)
    assert replace(folder, augment=False, crop_scale=0.08, color_jitter=None).augmentation(images) is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (Digits(held_out=9999), "held_out is 9999; expected 0 to 1296"),
        (Digits(held_out=0, images=1298), r"data\.images is 1298; expected 1 to 1297"),
        (Digits(held_out=300, images=1000), r"data\.images is 1000 and data\.held_out 300; expected .* 1297"),
        (CIFAR10(), r"data\.root is not set; .*CIFAR-10:.*SPEQUANT_DATA"),
        (CIFAR100(), r"data\.root is not set; .*CIFAR-100:"),
        (Folder(), r"data\.root is not set; .*--data\.root"),
        (Torchvision.named("Flowers102")(), r"data\.root is not set; .*Flowers102"),
        (Torchvision.named("Flowers")(), r"'torchvision/Flowers', .*did you mean Flowers102"),
    ],
)
def test_missing_data_are_named(settings, named, monkeypatch):
    monkeypatch.delenv("SPEQUANT_DATA", raising=False)
    with pytest.raises(ValueError, match=named):
        settings.parts("resnet8", CPU)


def test_missing_questions_are_named(monkeypatch):
    monkeypatch.delenv("SPEQUANT_DATA", raising=False)
    with pytest.raises(ValueError, match=r"data\.root is not set; .*SQuAD"):
        Squad().load()


def test_the_root_is_read_from_the_environment_if_the_settings_have_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEQUANT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/cifar-10-batches-bin"):
        CIFAR10().load("")
    with pytest.raises(FileNotFoundError, match="/elsewhere"):
        CIFAR10(root="/elsewhere").load("")


def test_one_run_at_a_time_downloads_into_a_folder(tmp_path, monkeypatch):
    def load(root, download):
        with pytest.raises(Timeout):
            FileLock(root / ".download.lock").acquire(timeout=0)
        return load_digits()

    monkeypatch.setattr("spequant.data.cifar.load_cifar10", load)
    train, _, _ = CIFAR10(root=tmp_path / "new", download=True, held_out=0).parts("", CPU)
    assert len(train) > 1000 and FileLock(tmp_path / "new/.download.lock").acquire(timeout=0)


def test_fields_that_are_none_are_taken_from_the_network(root):
    data, vit = Folder(root=root, held_out=0, workers=0), "timm/vit_tiny_patch16_224.augreg_in21k"
    train, _, _ = data.parts(vit, CPU)
    assert train.mean == (0.5,) * 3 and train.images.crop == Crop(224, 0.9, "bicubic")
    train, _, _ = replace(data, size=32, crop_pct=1.0, interpolation="box").parts(vit, CPU)
    assert train.images.crop == Crop(32, 1.0, "box")
    assert data.parts("", CPU)[0].images.crop == Crop(224, 0.875, "bilinear")
