"""Image sets in folders and of torchvision: their splits and labels, folders and sets that are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spequant.data import (
    Crop,
    ImageFiles,
    ImageSet,
    RandomCrop,
    data_configuration,
    hold_out,
    load_folder,
    load_torchvision,
    train_batches,
)
from spequant.data.named import stored_labels
from support.image_folders import Listed, fill, needs_timm, order_of, picture

pytestmark = needs_timm
ABOUT = replace(data_configuration(""), size=16)


def test_the_order_is_fixed_and_the_first_images_are_of_all_classes(tmp_path):
    train, test = load_folder(fill(tmp_path), ABOUT)
    assert sorted(test.images.indices.tolist()) == list(range(12)) and set(test.labels[:8].tolist()) == {0, 1, 2}
    assert sorted(train.images.indices.tolist()) == list(range(30))
    assert set(train.labels[:10].tolist()) == {0, 1, 2}
    assert [train.images.name(i).split("/")[-2] for i in range(30)] == [
        ("ant", "bee", "cat")[label] for label in train.labels
    ]
    assert torch.equal(order_of(train), order_of(load_folder(tmp_path, ABOUT)[0]))
    assert train.names == test.names == ("ant", "bee", "cat") and train.configuration == ABOUT
    (tmp_path / "words.txt").write_text("bee\tbumblebee\n")
    assert load_folder(tmp_path, ABOUT)[1].names == ("ant", "bumblebee", "cat")
    rest, held_out = hold_out(train, 6)
    assert torch.bincount(held_out.labels).tolist() == [2, 2, 2] and len(rest) == 24


def test_damaged_images_are_left_out_on_request_with_their_number_and_names(tmp_path):
    fill(tmp_path, train=4)
    for name in ("train/ant/00.png", "train/cat/03.jpg"):
        (tmp_path / name).write_text("text")
    with pytest.warns(UserWarning, match="2 of 12 images .*left out: ") as caught:
        train, test = load_folder(tmp_path, ABOUT, check=True)
    assert "ant/00.png" in str(caught[0].message) and "cat/03.jpg" in str(caught[0].message) and len(caught) == 1
    assert torch.bincount(train.labels).tolist() == [3, 4, 3] and len(test) == 12
    assert train.images[:].shape == (10, 3, 16, 16)
    for path in tmp_path.glob("val/*/*"):
        path.write_text("text")
    with (
        pytest.warns(UserWarning, match=r"2 of 12|12 of 12 .*and 7 more"),
        pytest.raises(ValueError, match="none of 12 images"),
    ):
        load_folder(tmp_path, ABOUT, check=True)


def test_folders_that_are_no_image_sets_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train does not exist, .*nowhere does not exist; .*data\.root"):
        load_folder(tmp_path / "nowhere", ABOUT)
    with pytest.raises(FileNotFoundError, match=r"train does not exist, .* holds no folder"):
        load_folder(tmp_path, ABOUT)
    (tmp_path / "train").mkdir()
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="train holds no folder"):
        load_folder(tmp_path, ABOUT)
    (tmp_path / "train").rmdir()
    fill(tmp_path)
    (tmp_path / "train/dog").mkdir()
    (tmp_path / "train/dog/notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="train/dog without an image"):
        load_folder(tmp_path, ABOUT)
    picture(np.random.default_rng(0)).save(tmp_path / "train/dog/a.png")
    with pytest.raises(ValueError, match=r"only .*train has dog; "):
        load_folder(tmp_path, ABOUT)
    (tmp_path / "val/elk").mkdir()
    picture(np.random.default_rng(0)).save(tmp_path / "val/elk/a.png")
    with pytest.raises(ValueError, match=r"train has dog .*val has elk"):
        load_folder(tmp_path, ABOUT)
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(ValueError, match=r"only .*test has elk"):
        load_folder(tmp_path, ABOUT)


def test_labels_are_read_without_decoding_if_the_source_stores_them():
    assert stored_labels(Listed([2, 0, 1], "targets")).tolist() == [2, 0, 1]
    assert stored_labels(Listed(np.array([1, 1], np.uint8), "labels")).dtype == torch.int64
    assert stored_labels(Listed([1, 0])).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"Listed has labels .*no numbers"):
        stored_labels(Listed(["ant", "bee"]))
    with pytest.raises(ValueError, match=r"labels of shape \(2, 2\)"):
        stored_labels(Listed([[0, 1], [1, 0]], "targets"))
    with pytest.raises(ValueError, match="labels run from 0 to 3; expected 0 to 2"):
        ImageSet(ImageFiles(Listed([0, 3]), Crop(8)), torch.tensor([0, 3]), (0.5,) * 3, (0.5,) * 3, 3)


def test_a_fifth_of_a_torchvision_set_without_a_split_is_the_test_set(monkeypatch):
    from torchvision import datasets

    class Small(datasets.FakeData):
        def __init__(self):
            super().__init__(size=100, image_size=(3, 8, 8))

    monkeypatch.setattr(datasets, "FakeData", Small)
    train, test = load_torchvision("FakeData", None, ABOUT)
    assert (len(train), len(test), train.classes, test.classes) == (80, 20, 10, 10)
    order = torch.cat([order_of(train), order_of(test)])
    assert torch.equal(order.sort().values, torch.arange(100)) and train.images[:2].shape == (2, 3, 16, 16)
    assert torch.equal(order_of(load_torchvision("FakeData", None, ABOUT)[1]), order_of(test))


def test_a_torchvision_set_with_private_labels_and_paths_is_read(tmp_path):
    folder, counts = tmp_path / "dtd/dtd", {"train": 6, "test": 4, "val": 0}
    for name in ("banded", "woven"):
        (folder / "images" / name).mkdir(parents=True)
    (folder / "labels").mkdir()
    for split, count in counts.items():
        names = [f"{('banded', 'woven')[i % 2]}/{split}{i}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            picture(np.random.default_rng(i)).save(folder / "images" / name)
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(names))
    train, test = load_torchvision("DTD", tmp_path, ABOUT)
    assert (len(train), len(test), train.classes) == (6, 4, 2)
    assert torch.equal(train.labels, order_of(train) % 2) and test.images[:].shape == (4, 3, 16, 16)
    (folder / "images/banded/test0.jpg").write_text("text")
    with pytest.raises(ValueError, match=r"banded/test0\.jpg is no image"):
        test.images[:]


@pytest.mark.parametrize("word", ["train", "split"])
def test_a_torchvision_set_has_the_split_of_its_class(monkeypatch, tmp_path, word):
    from torchvision import datasets

    calls = []

    class ByTrain(Listed):
        def __init__(self, root, train=True, download=False):
            calls.append((root, train, download))
            super().__init__([0, 1, 2, 1] if train else [2, 0], "targets")

    class BySplit(Listed):
        def __init__(self, root, split="test"):
            if split not in ("trainval", "val"):
                raise ValueError(f"Unknown value '{split}' for argument split")
            calls.append((root, split))
            super().__init__([0, 1, 2, 1] if split == "trainval" else [2, 0], "targets")

    monkeypatch.setattr(datasets, "USPS", ByTrain if word == "train" else BySplit)
    train, test = load_torchvision("USPS", tmp_path, ABOUT, download=word == "train")
    expected = [(tmp_path, True, True), (tmp_path, False, True)] if word == "train" else [
        (tmp_path, "trainval"), (tmp_path, "val")]  # fmt: skip
    assert calls == expected and (len(train), len(test), train.classes) == (4, 2, 3)
    assert sorted(test.labels.tolist()) == [0, 2]


def test_torchvision_sets_that_cannot_be_opened_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("SPEQUANT_DATA", raising=False)
    with pytest.raises(ValueError, match=r"'torchvision/Flower102'.*Flowers102"):
        load_torchvision("Flower102", tmp_path, ABOUT)
    with pytest.raises(ValueError, match=r"it has CIFAR10, .*SVHN"):
        load_torchvision("zzzzzz", tmp_path, ABOUT)
    with pytest.raises(ValueError, match=r"data\.root is not set; .*torchvision's DTD"):
        load_torchvision("DTD", None, ABOUT)
    with pytest.raises(ValueError, match=r"MNIST cannot be opened .*data\.download"):
        load_torchvision("MNIST", tmp_path, ABOUT)
    with pytest.raises(ValueError, match=r"CocoDetection takes more .*annFile"):
        load_torchvision("CocoDetection", tmp_path, ABOUT)
    with pytest.raises(ValueError, match=r"EMNIST .*splits train, trainval"):
        load_torchvision("EMNIST", tmp_path, ABOUT)


def test_tiny_imagenet(tiny_imagenet):
    data, test = load_folder(tiny_imagenet, replace(ABOUT, size=56))
    train, held_out = hold_out(data, 500)
    assert (len(train), len(held_out), len(test), train.classes) == (4500, 500, 500, 10)
    assert torch.bincount(held_out.labels).tolist() == [50] * 10 and len(set(train.labels[:100].tolist())) == 10
    images, labels = next(train_batches(train, 64, seed=0, epoch=0, augment=RandomCrop()))
    assert images.shape == (64, 3, 56, 56) and labels.shape == (64,)
    plain = train.normalise(train.images[:200])
    assert abs(float(plain.mean())) < 0.25 and abs(float(plain.std()) - 1) < 0.25
