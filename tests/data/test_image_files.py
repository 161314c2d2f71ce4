"""Images in files: decoding, order, augmentation, workers, torchvision's sets by name, input that is no good, a run."""

import json
import random
import signal
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from spequant.batch_norm import reestimate_batch_norm
from spequant.cli import main
from spequant.data import (
    Augment,
    Crop,
    ImageFiles,
    ImageSet,
    RandomCrop,
    data_configuration,
    eval_batches,
    hold_out,
    load_folder,
    load_torchvision,
    train_batches,
)
from spequant.data.image_files import rgb
from spequant.data.named import labels_of
from spequant.models import make_network
from spequant.recipes import RECIPES
from spequant.recipes.build import build_augment, build_data, build_network
from spequant.recipes.dry_run import dry_run
from spequant.recipes.run import Quiet, run
from spequant.recipes.schema import Data, MethodChoice, Network, Quantization, Recipe, Training
from spequant.recipes.sources import load_run
from spequant.train import Interrupted, evaluate
from support.image_folders import fill, picture

pytest.importorskip("timm")
Image = pytest.importorskip("PIL.Image")

# Python 3.12 on: workers are forked, and torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ABOUT = replace(data_configuration(""), size=16)
FLOAT = Quantization(weight_bits=None, act_bits=None)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pair(root):
    return load_folder(root, ABOUT)


def with_workers(data, workers):
    return replace(data, images=ImageFiles(data.images.source, data.images.crop, workers=workers).part(order_of(data)))


def order_of(data):
    return torch.from_numpy(data.images.chosen)


def same(first, second):
    return all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_a_folder_stands_in_for_a_tensor(pair):
    train, test = pair
    assert (len(train), len(test), train.classes) == (30, 12, 3)
    images = test.images
    assert images.shape == (12, 3, 16, 16) and images.dim() == 4 and images.dtype == torch.uint8
    whole = images[:]
    assert whole.shape == images.shape and whole.dtype == torch.uint8 and images.device == whole.device
    assert torch.equal(images[torch.tensor([5, 2])], whole[[5, 2]]) and images[3:3].shape == (0, 3, 16, 16)
    part = test.part(torch.tensor([4, 7, 1]))
    assert part.images.source is images.source and torch.equal(part.images[1:], whole[[7, 1]])
    assert torch.equal(part.part(slice(1, 2)).images[:], whole[[7]]) and torch.equal(
        part.labels, test.labels[[4, 7, 1]]
    )
    assert images.to("meta")[:1].device.type == "meta" and images.device.type == "cpu"
    assert torch.equal(torch.cat([x for x, _ in eval_batches(test, 5)]), test.normalise(whole))
    shared = [torch.cat([x for x, _ in eval_batches(test, 2, turn=turn, turns=2)]) for turn in (0, 1)]
    assert torch.equal(shared[1], test.normalise(whole[[2, 3, 6, 7, 10, 11]])) and len(shared[0]) == 6


def test_evaluation_scales_the_shorter_side_and_takes_the_middle(pair):
    _, test = pair
    for position in range(len(test)):
        with Image.open(test.images.name(position)) as image:
            width, height = image.size
            ratio = int(16 / 0.875) / min(width, height)
            wide, high = (int(side * ratio) if side != min(width, height) else 18 for side in (width, height))
            scaled = np.array(image.convert("RGB").resize((wide, high), Image.Resampling.BILINEAR))
        top, left = round((high - 16) / 2), round((wide - 16) / 2)
        expected = scaled[top : top + 16, left : left + 16].transpose(2, 0, 1)
        assert np.array_equal(test.images[position : position + 1][0].numpy(), expected), (width, height)


def test_orders_are_drawn_once_so_that_the_first_images_are_of_all_classes(pair, root):
    train, test = pair
    assert sorted(test.images.chosen.tolist()) == list(range(12)) and set(test.labels[:8].tolist()) == {0, 1, 2}
    assert sorted(train.images.chosen.tolist()) == list(range(30))
    assert set(train.labels[:10].tolist()) == {0, 1, 2}
    assert [train.images.name(i).split("/")[-2] for i in range(30)] == [
        ("ant", "bee", "cat")[label] for label in train.labels
    ]
    assert torch.equal(order_of(train), order_of(load_folder(root, ABOUT)[0]))
    rest, held = hold_out(train, 6)
    assert torch.bincount(held.labels).tolist() == [2, 2, 2] and len(rest) == 24


@pytest.mark.parametrize("augment", [RandomCrop(), RandomCrop(0.5, 0.4), RandomCrop(auto_augment="rand-m9-mstd0.5")])
def test_batches_follow_from_seed_epoch_and_position_whatever_the_workers(pair, augment):
    train, _ = pair
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    whole = list(train_batches(train, 4, seed=3, epoch=2, augment=augment))
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())
    assert len(whole) == 7 and whole[0][0].shape == (4, 3, 16, 16) and whole[0][1].dtype == torch.int64
    assert whole[0][0].is_contiguous(memory_format=torch.channels_last) and whole[0][0].dtype == torch.float32
    random.seed(5)
    torch.manual_seed(7)
    assert same(whole[5:], train_batches(train, 4, seed=3, epoch=2, augment=augment, start=5))
    two = with_workers(train, 2)
    with warnings.catch_warnings():  # fewer CPUs than workers
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(9)
        state = torch.get_rng_state()
        assert same(whole, train_batches(two, 4, seed=3, epoch=2, augment=augment))
        assert torch.equal(state, torch.get_rng_state())
        assert same(whole[3:], train_batches(two, 4, seed=3, epoch=2, augment=augment, start=3))
    parts = [train_batches(train, 4, seed=3, epoch=2, augment=augment, part=slice(i, i + 2)) for i in (0, 2)]
    assert same(whole, [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(*parts, strict=True)])
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 1}):
        assert not torch.equal(whole[0][0], next(train_batches(train, 4, augment=augment, **other))[0])


def test_an_image_is_augmented_anew_in_each_epoch_and_not_at_all_without(pair):
    one = pair[0].part(slice(0, 1))
    draws = [next(train_batches(one, 1, seed=0, epoch=e, augment=RandomCrop()))[0] for e in range(3)]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])
    plain, labels = next(train_batches(one, 1, seed=0, epoch=0, augment=None))
    assert torch.equal(plain, one.normalise(one.images[:])) and labels == one.labels
    padded, _ = next(train_batches(one, 1, seed=0, epoch=0, augment=Augment()))
    memory = replace(one, images=one.images[:])
    assert torch.equal(padded, next(train_batches(memory, 1, seed=0, epoch=0, augment=Augment()))[0])
    with pytest.raises(ValueError, match="RandomCrop, which images in memory do not take"):
        next(train_batches(memory, 1, seed=0, epoch=0, augment=RandomCrop()))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_when_it_is_decoded(tmp_path, workers):
    damaged = fill(tmp_path, train=4, ends=("jpg",)) / "train/bee/02.jpg"
    for content in (damaged.read_bytes()[:300], b"no image at all", b""):
        damaged.write_bytes(content)
        train, test = load_folder(tmp_path, ABOUT, workers=workers)
        with pytest.raises(ValueError, match=r"^.*train/bee/02\.jpg is no image that can be read .*check_images"):
            list(train_batches(train, 4, seed=0, epoch=0, augment=RandomCrop()))
        with pytest.raises(ValueError, match=r"bee/02\.jpg"):
            train.images[:]
        assert len(list(eval_batches(test, 4))) == 3


def test_damaged_images_are_left_out_on_request_with_their_number_and_names(tmp_path):
    fill(tmp_path, train=4)
    for name in ("train/ant/00.png", "train/cat/03.jpg"):
        (tmp_path / name).write_text("text")
    with pytest.warns(UserWarning, match="2 of 12 images cannot be decoded and are left out: ") as told:
        data = Data("folder", tmp_path, check_images=True, held_out=0, size=16)
        train, _, test = build_data(data, torch.device("cpu"))
    assert "ant/00.png" in str(told[0].message) and "cat/03.jpg" in str(told[0].message) and len(told) == 1
    assert torch.bincount(train.labels).tolist() == [3, 4, 3] and len(test) == 12
    assert train.images[:].shape == (10, 3, 16, 16)
    for path in tmp_path.glob("val/*/*"):
        path.write_text("text")
    with (
        pytest.warns(UserWarning, match=r"2 of 12|12 of 12 .*and 7 more"),
        pytest.raises(ValueError, match="none of 12 images can be decoded"),
    ):
        build_data(data, torch.device("cpu"))


def test_folders_that_make_no_set_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train does not exist, .* does not exist; expected train and val"):
        load_folder(tmp_path / "nowhere", ABOUT)
    with pytest.raises(FileNotFoundError, match=r"train does not exist, .* holds none"):
        load_folder(tmp_path, ABOUT)
    (tmp_path / "train").mkdir()
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="train holds no folder; expected one for each class"):
        load_folder(tmp_path, ABOUT)
    (tmp_path / "train").rmdir()
    fill(tmp_path)
    (tmp_path / "train/dog").mkdir()
    (tmp_path / "train/dog/notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="train/dog without an image"):
        load_folder(tmp_path, ABOUT)
    picture(np.random.default_rng(0)).save(tmp_path / "train/dog/a.png")
    with pytest.raises(ValueError, match=r"train alone has dog; expected the same class folders"):
        load_folder(tmp_path, ABOUT)
    (tmp_path / "val/elk").mkdir()
    picture(np.random.default_rng(0)).save(tmp_path / "val/elk/a.png")
    with pytest.raises(ValueError, match=r"train alone has dog and .*val alone has elk"):
        load_folder(tmp_path, ABOUT)
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(ValueError, match="test alone has elk"):
        load_folder(tmp_path, ABOUT)


def test_images_of_every_mode_become_rgb(tmp_path):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = np.stack([gray, gray.T, 255 - gray], -1)
    image = Image.fromarray(colours)
    cases = {
        "gray.png": (Image.fromarray(gray), np.stack([gray] * 3, -1)),
        "deep.png": (Image.fromarray(gray.astype(np.uint16) * 257), np.stack([gray] * 3, -1)),
        "alpha.png": (Image.fromarray(np.dstack([colours, gray])), colours),
        "cmyk.tiff": (image.convert("CMYK"), colours),
        "palette.png": (image.quantize(256), None),
        "bits.png": (Image.fromarray(gray).convert("1"), None),
    }
    for name, (saved, expected) in cases.items():
        saved.save(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            made = rgb(opened)
        assert made.mode == "RGB" and made.size == (16, 16), name
        assert expected is None or np.array_equal(np.array(made), expected), name
    see_through = image.quantize(4)
    see_through.save(tmp_path / "clear.png", transparency=b"\0\x80\xff\xff")
    with Image.open(tmp_path / "clear.png") as opened:
        assert np.array_equal(np.array(rgb(opened)), np.array(see_through.convert("RGB")))


def test_images_smaller_than_the_crop_are_enlarged_and_a_batch_is_no_larger_than_the_set(pair):
    train, _ = pair
    large = replace(train, images=ImageFiles(train.images.source, Crop(64, 1.0, "bicubic")).part(order_of(train)))
    images, _ = next(train_batches(large, 2, seed=0, epoch=0, augment=RandomCrop()))
    assert images.shape == large.images[:2].shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match="batch_size is 31; expected 1 to 30, the number of images"):
        next(train_batches(large, 31, seed=0, epoch=0, augment=RandomCrop()))


class Listed(Dataset):
    """A source of `labels`, under the attribute `name` where it is given."""

    def __init__(self, labels, name=None):
        self.given = labels
        if name:
            setattr(self, name, labels)

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        if hasattr(self, "targets"):
            raise AssertionError("decoded")
        return picture(np.random.default_rng(index), 8), self.given[index]


def test_labels_come_without_decoding_where_the_source_has_them():
    assert labels_of(Listed([2, 0, 1], "targets")).tolist() == [2, 0, 1]
    assert labels_of(Listed(np.array([1, 1], np.uint8), "_labels")).dtype == torch.int64
    assert labels_of(Listed([1, 0])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="Listed has labels that are no numbers"):
        labels_of(Listed(["ant", "bee"]))
    with pytest.raises(ValueError, match=r"labels of shape \(2, 2\)"):
        labels_of(Listed([[0, 1], [1, 0]], "targets"))
    with pytest.raises(ValueError, match="labels run from 0 to 3; expected 0 to 2"):
        ImageSet(ImageFiles(Listed([0, 3]), Crop(8)), torch.tensor([0, 3]), (0.5,) * 3, (0.5,) * 3, 3)
    with pytest.raises(ValueError, match="image 1 of Listed is no image that can be read"):
        ImageFiles(Listed([0, 3], "targets"), Crop(8))[1:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(0), "size is 0"),
        (lambda: Crop(8, 1.5), r"crop_pct is 1\.5"),
        (lambda: Crop(8, 1, "cubic"), "interpolation is 'cubic'; expected one of nearest"),
        (lambda: RandomCrop(0), "crop_scale is 0"),
        (lambda: RandomCrop(color_jitter=-1), "color_jitter is -1"),
        (lambda: RandomCrop(auto_augment="rnd").transform(Crop(8)), "auto_augment is 'rnd', which timm does not take"),
        (lambda: ImageFiles([], Crop(8), workers=-1), "workers is -1"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_torchvision_set_that_is_not_divided_gives_a_fifth_to_the_test():
    made = Data("torchvision/FakeData", held_out=100, size=8, workers=0)
    train, held, test = build_data(made, torch.device("cpu"))
    assert (len(train), len(held), len(test), train.classes, test.classes) == (700, 100, 200, 10, 10)
    drawn = np.concatenate([part.images.chosen for part in (train, held, test)])
    assert np.array_equal(np.sort(drawn), np.arange(1000)) and train.images[:2].shape == (2, 3, 8, 8)
    again = build_data(made, torch.device("cpu"))[2]
    assert np.array_equal(again.images.chosen, test.images.chosen)


@pytest.mark.parametrize("word", ["train", "split"])
def test_a_torchvision_set_is_divided_as_its_class_is(monkeypatch, tmp_path, word):
    from torchvision import datasets

    asked = []

    class ByTrain(Listed):
        def __init__(self, root, train=True, download=False):
            asked.append((root, train, download))
            super().__init__([0, 1, 2, 1] if train else [2, 0], "_labels")

    class BySplit(Listed):
        def __init__(self, root, split="test"):
            if split not in ("trainval", "val"):
                raise ValueError(f"Unknown value '{split}' for argument split")
            asked.append((root, split))
            super().__init__([0, 1, 2, 1] if split == "trainval" else [2, 0], "_labels")

    monkeypatch.setattr(datasets, "USPS", ByTrain if word == "train" else BySplit)
    data = Data("torchvision/USPS", tmp_path, held_out=0, size=8, workers=0, download=word == "train")
    train, _, test = build_data(data, torch.device("cpu"))
    expected = [(tmp_path, True, True), (tmp_path, False, True)] if word == "train" else [
        (tmp_path, "trainval"), (tmp_path, "val")]  # fmt: skip
    assert asked == expected and (len(train), len(test), train.classes) == (4, 2, 3)
    assert sorted(test.labels.tolist()) == [0, 2]


def test_torchvision_sets_that_cannot_be_had_are_told(tmp_path, monkeypatch):
    monkeypatch.delenv("SPEQUANT_DATA", raising=False)
    with pytest.raises(ValueError, match=r"'torchvision/Flower102', which .* did you mean Flowers102"):
        load_torchvision("Flower102", tmp_path, ABOUT)
    with pytest.raises(ValueError, match=r"it has CIFAR10, .*SVHN"):
        load_torchvision("zzzzzz", tmp_path, ABOUT)
    with pytest.raises(ValueError, match=r"data\.root is not set; expected the folder of torchvision's DTD"):
        load_torchvision("DTD", None, ABOUT)
    with pytest.raises(ValueError, match=r"MNIST cannot be opened \(Dataset not found.*data\.download"):
        load_torchvision("MNIST", tmp_path, ABOUT)
    with pytest.raises(ValueError, match="CocoDetection takes more than root, train or split"):
        load_torchvision("CocoDetection", tmp_path, ABOUT)
    with pytest.raises(ValueError, match="EMNIST has none of the splits train, trainval"):
        load_torchvision("EMNIST", tmp_path, ABOUT)


def test_without_the_extra_the_message_says_what_to_install(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"timm\.data is not installed: pip install 'spequant\[vision\]'"):
        pair[1].images[:1]


def test_torchvision_says_what_its_networks_expect():
    from torchvision import models

    different = set()
    for name in models.list_models(module=models):
        about, told = data_configuration(f"torchvision/{name}"), models.get_model_weights(name).DEFAULT.transforms()
        crop = Crop(about.size, about.crop_pct, about.interpolation, about.crop_mode).transform().transforms
        assert [crop[0].size, crop[1].size] == [told.resize_size[0], (told.crop_size[0],) * 2], name
        assert crop[0].interpolation == told.interpolation, name
        if name not in ("googlenet", "inception_v3"):  # whose networks normalise anew
            assert (about.mean, about.std) == (tuple(told.mean), tuple(told.std)), name
        different.add(about)
    assert len(different) > 10
    with pytest.raises(ValueError, match=r"network\.name is 'torchvision/x', and torchvision has no such network"):
        data_configuration("torchvision/x")


def test_a_picture_is_squashed_where_timm_says_so(pair):
    known = data_configuration("timm/convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384")
    assert known.crop_mode == "squash"
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 8, 3)))
    found = np.asarray(Crop(16, 1.0, mode="squash").transform()(image))
    assert found[0].min() < 8 and found[0].max() > 56  # all of it, where the middle is 8 of 64 rows


def test_timm_says_what_its_networks_expect():
    assert data_configuration("resnet18") == data_configuration("") == data_configuration("torchvision/alexnet")
    found = data_configuration("timm/mobilenetv3_large_100.ra_in1k")
    assert (found.size, found.crop_pct, found.interpolation, found.mean[0]) == (224, 0.875, "bicubic", 0.485)
    assert data_configuration("timm/vit_tiny_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    for wrong in ("timm/resnet18x", "timm/resnet18.nope"):
        with pytest.raises(ValueError, match=rf"network\.name is '{wrong}'"):
            data_configuration(wrong)


def test_open_fields_follow_from_the_network(root):
    data = Data("folder", root, held_out=0, workers=0)
    train, _, _ = build_data(data, torch.device("cpu"), "timm/vit_tiny_patch16_224.augreg_in21k")
    assert train.mean == (0.5,) * 3 and train.images.crop == Crop(224, 0.9, "bicubic")
    given = replace(data, size=32, crop_pct=1.0, interpolation="box")
    train, _, _ = build_data(given, torch.device("cpu"), "timm/vit_tiny_patch16_224.augreg_in21k")
    assert train.images.crop == Crop(32, 1.0, "box")
    assert build_data(data, torch.device("cpu"))[0].images.crop == Crop(224, 0.875, "bilinear")


def recipe(root, **data):
    return Recipe(
        "tiny",
        Data("folder", root, held_out=3, size=16, workers=0, crop_scale=0.5, **data),
        Network("resnet8"),
        FLOAT,
        MethodChoice("retrain"),
        Training(2, 8, precision="fp32", compile=False, device="cpu"),
    )


def test_a_run_on_a_folder(root, tmp_path):
    result = run(recipe(root), tmp_path / "run")
    assert 0 <= result["test_accuracy"] <= 100 and 0 <= result["held_out_accuracy"] <= 100
    _, model, test = load_run(tmp_path / "run")
    assert round(evaluate(model, eval_batches(test, 5)).accuracy, 4) == round(result["test_accuracy"], 4)
    again = run(recipe(root), tmp_path / "again")
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_interrupted_within_an_epoch_goes_on_to_equal_weights(root, tmp_path, workers):
    mixed = recipe(root, mixup=0.4)
    mixed = replace(mixed, train=replace(mixed.train, batch_size=4, checkpoint_every=2))

    class Stopping(Quiet):
        def step(self, progress):
            if progress.epoch == 1 and progress.step == 3:
                signal.raise_signal(signal.SIGINT)

    run(mixed, tmp_path / "whole")
    with warnings.catch_warnings():  # fewer CPUs than workers
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(Interrupted, match="after step 9"):
            run(mixed, tmp_path / "stopped", Stopping())
        run(replace(mixed, data=replace(mixed.data, workers=workers)), tmp_path / "stopped", resume=True)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_an_estimate_of_a_run_on_a_folder(root):
    found = dry_run(recipe(root))
    assert (found.samples, found.steps) == ((27, 3, 12), 6)
    assert found.step_seconds > 0


def test_speq_on_a_folder_with_mixed_images(root, tmp_path):
    mixed = replace(recipe(root, mixup=0.2, cutmix=1.0), quant=Quantization(), method=MethodChoice("speq"))
    mixed = replace(mixed, train=replace(mixed.train, label_smoothing=0.1))
    assert run(mixed, tmp_path / "run")["weight_bytes"] > 0
    assert "mixup" in (tmp_path / "run/recipe.json").read_text()


def test_weights_of_another_head_name_both_numbers(pair, tmp_path):
    train, _ = pair
    torch.save(build_network(Network("resnet8"), replace(train, classes=7)).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(ValueError, match=r"(?s)seven\.pt does not fit.*\[7.*\[3.*the data's 3 classes"):
        build_network(Network("resnet8", tmp_path / "seven.pt"), train)


def test_tiny_imagenet(tiny_imagenet):
    train, held, test = build_data(Data("folder", tiny_imagenet, held_out=500, size=56), torch.device("cpu"))
    assert (len(train), len(held), len(test), train.classes) == (4500, 500, 500, 10)
    assert torch.bincount(held.labels).tolist() == [50] * 10 and len(set(train.labels[:100].tolist())) == 10
    images, labels = next(train_batches(train, 64, seed=0, epoch=0, augment=RandomCrop()))
    assert images.shape == (64, 3, 56, 56) and labels.shape == (64,)
    plain = train.normalise(train.images[:200])
    assert abs(float(plain.mean())) < 0.25 and abs(float(plain.std()) - 1) < 0.25


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("imagenet-")])
def test_imagenets_recipes_train_on_its_classes_at_hand(name, tiny_imagenet, tmp_path):
    """From a float network of a few steps in place of the published one, which is fetched. Random weights do not do: in
    EfficientNet's last stage running statistics and those of a batch are worlds apart, and ranges follow the former."""
    data = Data("folder", tiny_imagenet, size=64, images=128, workers=0, held_out=0)
    train, _, _ = build_data(data, torch.device("cpu"))
    network = make_network(RECIPES[name]().network.name, classes=10, size=64)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(5):
        for x, y in train_batches(train, 32, seed=1, epoch=epoch, augment=build_augment(data, train)):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    augmented = train_batches(train, 32, seed=0, epoch=0, augment=build_augment(data, train))
    reestimate_batch_norm(network, [x for x, _ in augmented])
    save_file(network.state_dict(), tmp_path / "float.safetensors")
    small = {"data.size": 64, "data.images": 128, "data.workers": 0, "train.epochs": 1}
    small |= {"train.batch-size": 32, "train.lr": 0.005}  # an eighth of both
    words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    words += ["--network.weights", str(tmp_path / "float.safetensors"), "--network.no-pretrained"]
    off = ["--train.no-compile", "--train.precision", "fp32"]
    main(["train", name, "--data.root", str(tiny_imagenet), *words, *off, "--out", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert 0 <= result["test_accuracy"] <= 100 and result["weight_bytes"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (epoch,) = [row for row in rows if row["kind"] == "epoch"]
    assert -1e-6 < epoch["distill"] <= 1 and epoch["loss"] < 6  # 1 - a cosine, and chance is 2.3
